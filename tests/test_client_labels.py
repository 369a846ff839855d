"""Reading a hospital's labels file."""

from pathlib import Path

import pytest
import studies
from dicom_files import make_study
from hypothesis import given, settings
from hypothesis import strategies as st

from client.dicom_file import Unusable
from client.labels import LabelsError, LabelTable, read_labels
from client.reasons import LabelProblem, Reason
from client.roles import Role
from client.site_file import Labels
from shared_models.tasks.task import MISSING

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


# Several classes


def with_task(
    tmp_path: Path,
    text: str,
    table: str,
    *,
    column: str | None = None,
    columns: dict[str, str] | None = None,
) -> LabelTable:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    study = studies.make_study({studies.ONE_QUESTION: table})
    return read_labels(Labels(file=path, key="PatientID", column=column, columns=columns or {}), study)


def test_values_of_classes_become_their_numbers_and_others_are_counted(tmp_path: Path) -> None:
    text = "PatientID,finding\na,clear\nb,consolidation\nb,opacity\nc,mass\nd,Mass\ne,\nf,mass\nf,clear\n"
    table = with_task(tmp_path, text, studies.THREE_CLASSES)
    assert table.labels == {"a": 0, "b": 1, "c": 2}
    assert table.problems == {
        LabelProblem.REPEATED: 1,
        LabelProblem.UNKNOWN_LABEL: 1,
        LabelProblem.EMPTY_LABEL: 1,
        LabelProblem.CONTRADICTORY: 1,
    }
    assert reason(table, "d") is Reason.LABEL_UNKNOWN
    assert reason(table, "e") is Reason.LABEL_EMPTY
    assert reason(table, "f") is Reason.LABEL_CONTRADICTORY
    assert not table.finding_problems


# Several findings

FINDINGS = "PatientID,effusion,finding\n"


def test_each_finding_is_read_from_its_column_and_what_is_not_known_is_missing(tmp_path: Path) -> None:
    text = FINDINGS + "a,1,opacity\nb,0,clear\nc,,opacity\nd,1,maybe\n"
    table = with_task(tmp_path, text, studies.TWO_FINDINGS)
    assert table.labels == {"a": (1, 1), "b": (0, 0), "c": (1, MISSING), "d": (MISSING, 1)}
    assert table.problems == {LabelProblem.EMPTY_FINDING: 1, LabelProblem.UNKNOWN_FINDING: 1}
    assert table.finding_problems == {
        "opacity": {LabelProblem.UNKNOWN_FINDING: 1},
        "effusion": {LabelProblem.EMPTY_FINDING: 1},
    }


def test_a_contradiction_about_one_finding_leaves_the_other_as_it_is(tmp_path: Path) -> None:
    table = with_task(tmp_path, FINDINGS + "a,1,opacity\na,0,opacity\nb,1,\nb,,clear\n", studies.TWO_FINDINGS)
    assert table.labels == {"a": (1, MISSING), "b": (0, 1)}
    assert table.finding_problems["effusion"] == {
        LabelProblem.CONTRADICTORY_FINDING: 1,
        LabelProblem.EMPTY_FINDING: 1,
    }
    assert LabelProblem.REPEATED not in table.problems


def test_a_row_that_says_all_findings_again_is_counted_once(tmp_path: Path) -> None:
    table = with_task(tmp_path, FINDINGS + "a,1,opacity\na,1,opacity\n", studies.TWO_FINDINGS)
    assert table.labels == {"a": (1, 1)}
    assert table.problems == {LabelProblem.REPEATED: 1}


def test_a_key_of_which_no_finding_is_known_has_no_label_for_the_gravest_reason(tmp_path: Path) -> None:
    text = FINDINGS + "a,,\nb,,maybe\nc,1,maybe\nc,0,\n"
    table = with_task(tmp_path, text, studies.TWO_FINDINGS)
    assert not table.labels
    assert reason(table, "a") is Reason.LABEL_EMPTY
    assert reason(table, "b") is Reason.LABEL_UNKNOWN
    assert reason(table, "c") is Reason.LABEL_CONTRADICTORY


@settings(deadline=None)
@given(st.permutations(["a,1,opacity", "a,0,opacity", "b,,clear", "b,1,", "c,2,maybe", "d,0,clear"]))
def test_the_order_of_rows_does_not_matter_for_findings(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str]
) -> None:
    table = with_task(
        tmp_path_factory.mktemp("labels"), FINDINGS + "\n".join(rows) + "\n", studies.TWO_FINDINGS
    )
    assert table.labels == {"a": (1, MISSING), "b": (0, 1), "d": (0, 0)}
    assert table.unusable == {"c": Reason.LABEL_UNKNOWN}


def test_pseudonyms_in_the_place_of_keys_change_no_finding(tmp_path: Path) -> None:
    table = with_task(tmp_path, FINDINGS + "a,1,opacity\nb,,\n", studies.TWO_FINDINGS)
    keyed = table.keyed(str.upper)
    assert keyed.labels == {"A": (1, 1)}
    assert keyed.unusable == {"B": Reason.LABEL_EMPTY}
    assert keyed.finding_problems == table.finding_problems


def test_every_column_of_a_finding_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="column effusion is missing"):
        with_task(tmp_path, "PatientID,finding\na,clear\n", studies.TWO_FINDINGS)


def test_one_column_of_the_site_file_cannot_stand_for_several_findings(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match=r"the study takes labels from 2; remove labels\.column"):
        with_task(tmp_path, FINDINGS + "a,1,opacity\n", studies.TWO_FINDINGS, column="finding")


def test_columns_that_the_hospital_calls_otherwise_are_named_in_the_site_file(tmp_path: Path) -> None:
    text = "PatientID,Erguss,finding\na,1,opacity\n"
    other = {"effusion": "Erguss", "of another study": "Erguss"}
    assert with_task(tmp_path, text, studies.TWO_FINDINGS, columns=other).labels == {"a": (1, 1)}
    assert with_task(
        tmp_path, "PatientID,dx\na,mass\n", studies.THREE_CLASSES, columns={"finding": "dx"}
    ).labels == {"a": 2}
    with pytest.raises(LabelsError, match="column Erguss is missing"):
        with_task(tmp_path, FINDINGS + "a,1,opacity\n", studies.TWO_FINDINGS, columns=other)
