"""Reading a hospital's labels file."""

from pathlib import Path

import pytest
from dicom_files import make_study
from hypothesis import given
from hypothesis import strategies as st

from client.dicom_file import Unusable
from client.labels import LabelsError, LabelTable, read_labels
from client.reasons import LabelProblem, Reason
from client.roles import Role
from client.site_file import Labels

STUDY = make_study()


def read(tmp_path: Path, text: str | bytes, *, roles: str = "hash", column: str | None = None) -> LabelTable:
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(Labels(file=path, key="PatientID", column=column), make_study(roles=roles))


def reason(table: LabelTable, key: str) -> Reason:
    with pytest.raises(Unusable) as finding:
        table.label_of(key)
    return finding.value.reason


def test_values_become_one_and_zero(tmp_path: Path) -> None:
    table = read(tmp_path, "PatientID,finding\na,yes\nb,no\nc,1\nd,0\n")
    assert table.labels == {"a": 1, "b": 0, "c": 1, "d": 0}
    assert not table.problems
    assert table.num_rows == 4


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_mark_semicolons_and_windows_lines_are_read(
    tmp_path: Path, mark: bytes, delimiter: str, end: str
) -> None:
    lines = ["comment;PatientID;finding", '"a; b, c"; p1 ;yes', "", "x;p2;no", ";;"]
    text = end.join(
        lines if delimiter == ";" else [line.translate(str.maketrans(";,", ",;")) for line in lines]
    )
    table = read(tmp_path, mark + text.encode())
    assert table.labels == {"p1": 1, "p2": 0}
    assert not table.problems


def test_another_label_column_can_be_named_in_the_site_file(tmp_path: Path) -> None:
    assert read(tmp_path, "PatientID,diagnosis\na,yes\n", column="diagnosis").labels == {"a": 1}


def test_every_problem_of_a_row_is_counted_and_none_is_fatal(tmp_path: Path) -> None:
    table = read(
        tmp_path,
        "PatientID,finding\nok,yes\nshort\n,yes\nempty,\nodd,maybe\ntwice,no\ntwice,no\nboth,yes\nboth,no\nodd2,Yes\n",
    )
    assert table.labels == {"ok": 1, "twice": 0}
    assert table.problems == {
        LabelProblem.WRONG_LENGTH: 1,
        LabelProblem.EMPTY_KEY: 1,
        LabelProblem.EMPTY_LABEL: 1,
        LabelProblem.UNKNOWN_LABEL: 2,
        LabelProblem.REPEATED: 1,
        LabelProblem.CONTRADICTORY: 1,
    }
    assert reason(table, "both") is Reason.LABEL_CONTRADICTORY
    assert reason(table, "empty") is Reason.LABEL_EMPTY
    assert reason(table, "odd") is Reason.LABEL_UNKNOWN
    assert reason(table, "nobody") is Reason.NO_LABEL
    assert table.keys == {"ok", "empty", "odd", "odd2", "twice", "both"}


def test_two_values_of_the_same_side_do_not_contradict_each_other(tmp_path: Path) -> None:
    table = read(tmp_path, "PatientID,finding\na,yes\na,1\n")
    assert table.labels == {"a": 1}
    assert table.problems == {LabelProblem.REPEATED: 1}


def test_a_known_and_an_unknown_value_contradict_each_other(tmp_path: Path) -> None:
    assert reason(read(tmp_path, "PatientID,finding\na,yes\na,maybe\n"), "a") is Reason.LABEL_CONTRADICTORY


def test_an_empty_label_beside_a_filled_one_says_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "PatientID,finding\na,\na,yes\n").labels == {"a": 1}


@given(st.permutations([("a", "yes"), ("a", "no"), ("a", "yes"), ("b", "no"), ("c", "maybe"), ("c", "")]))
def test_the_order_of_rows_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    text = "PatientID,finding\n" + "".join(f"{key},{value}\n" for key, value in rows)
    table = read(tmp_path_factory.mktemp("labels"), text)
    assert table.labels == {"b": 0}
    assert table.unusable == {"a": Reason.LABEL_CONTRADICTORY, "c": Reason.LABEL_UNKNOWN}


def test_roles_are_read_where_the_study_takes_them_from_the_file(tmp_path: Path) -> None:
    text = "PatientID,finding,role\na,yes,train\nb,no,test\nb,no,train\nc,no,tset\n"
    table = read(tmp_path, text, roles="column")
    assert table.roles == {"a": {Role.TRAIN}, "b": {Role.TEST, Role.TRAIN}, "c": frozenset()}
    assert table.problems[LabelProblem.UNKNOWN_ROLE] == 1
    assert not read(tmp_path, text).roles


def test_a_missing_column_names_the_columns_there_are(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match=r"column finding is missing\. There are: PatientID, diagnosis"):
        read(tmp_path, "PatientID,diagnosis\na,yes\n")
    with pytest.raises(LabelsError, match="column role is missing"):
        read(tmp_path, "PatientID,finding\na,yes\n", roles="column")


def test_a_file_without_header_does_not_show_its_first_patient(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="is the header line missing") as error:
        read(tmp_path, "PAT-0001,Oftering\n")
    assert "PAT-0001" not in str(error.value)
    assert "Oftering" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"PatientID,finding\n\xff\xfe,yes\n", "is not UTF-8"),
        (b'PatientID,finding\n"a,yes\n', "not valid CSV"),
        (b"PatientID,finding,finding\na,yes,no\n", "occurs more than once"),
    ],
)
def test_a_file_that_is_no_such_csv_is_refused_with_the_cause(
    tmp_path: Path, text: bytes, message: str
) -> None:
    with pytest.raises(LabelsError, match=message):
        read(tmp_path, text)


def test_a_labels_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="cannot be read"):
        read_labels(Labels(file=tmp_path / "none.csv", key="PatientID"), STUDY)
