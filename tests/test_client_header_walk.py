"""What of a header could identify somebody is counted to the last nested element, and nothing of it is told."""

import os
import struct
from collections import Counter
from pathlib import Path

import pytest
from dicom_files import NAME, dataset, gradient, write
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from client.basic_profile import IDENTIFYING, Kind, kind_of
from client.dicom_file import MAX_INFLATED_BYTES, Unusable, opened, read_header
from client.header_walk import MAX_ELEMENTS, look_through
from client.identifying_facts import IdentifyingFacts


def facts_of(path: Path) -> IdentifyingFacts:
    with opened(path, max_inflated=MAX_INFLATED_BYTES) as file:
        header = read_header(file, with_frames=True)
        end = file.tell()
        found = look_through(file, header)
        assert file.tell() == end
    return found


def counts(facts: IdentifyingFacts) -> dict[str, int]:
    return {kind.field: number for kind in Kind if (number := getattr(facts, kind.field))}


def everything() -> Dataset:
    """One attribute of each kind at least, some of them nested, some empty."""
    inner = Dataset()
    inner.PatientAddress = "1 Road"
    inner.add_new(0x00191010, "LO", "of the maker")
    middle = Dataset()
    middle.RequestAttributesSequence = Sequence([inner])
    middle.RequestedProcedureID = ""
    made = dataset(
        gradient(),
        StudyDate="20190314",
        InstitutionName="St Elsewhere",
        DeviceSerialNumber="4711",
        StudyDescription="   ",
        SeriesDescription="thorax",
    )
    made.ProcedureCodeSequence = Sequence([middle])
    made.AcquisitionContextSequence = Sequence([])
    made.add_new(0x00290010, "LO", "MAKER")
    made.add_new(0x60003000, "OW", b"\1\2" * 8)
    made.add_new(0x60000010, "US", 4)
    return made


EXPECTED = {
    "patient": 2,  # name, address
    "identifiers": 1,  # accession number
    "dates": 1,
    "people": 1,
    "devices": 1,
    "texts": 2,  # series description, request attributes
    "private": 3,  # with the creators' own
    "graphics": 1,
}


@pytest.mark.parametrize("form", ["explicit", "undefined", "implicit", "big", "deflated"])
def test_each_attribute_that_holds_a_value_counts_once_however_the_file_is_written(
    tmp_path: Path, form: str
) -> None:
    made = everything()
    made["ProcedureCodeSequence"].value[0].RequestAttributesSequence[0].add_new(0x00190010, "LO", "MAKER")
    if form == "undefined":
        made["ProcedureCodeSequence"].is_undefined_length = True
        made["ProcedureCodeSequence"].value[0].is_undefined_length_sequence_item = True
    syntaxes = {
        "implicit": ImplicitVRLittleEndian,
        "big": ExplicitVRBigEndian,
        "deflated": DeflatedExplicitVRLittleEndian,
    }
    if form in syntaxes:
        made.file_meta.TransferSyntaxUID = syntaxes[form]
    facts = facts_of(write(tmp_path / "a.dcm", made))
    assert counts(facts) == EXPECTED
    assert facts.complete
    assert not facts.removed
    assert facts.to_remove == 7  # address, request, series description, private ones and overlay


def test_the_flag_is_read_and_what_is_removed_for_sure_is_counted_by_itself(tmp_path: Path) -> None:
    made = dataset(gradient(), PatientIdentityRemoved="YES", PatientName="", AccessionNumber="")
    facts = facts_of(write(tmp_path / "a.dcm", made))
    assert (facts.removed, facts.to_remove, counts(facts)) == (True, 0, {})
    made.PatientAddress, made.PatientBirthDate = "1 Road", "19510203"
    facts = facts_of(write(tmp_path / "b.dcm", made))
    assert (facts.to_remove, counts(facts)) == (1, {"patient": 1, "dates": 1})


def test_nothing_of_a_value_is_in_what_is_told(tmp_path: Path) -> None:
    text = facts_of(write(tmp_path / "a.dcm", everything())).model_dump_json()
    assert not [word for word in (*NAME.split("^"), "Elsewhere", "4711", "thorax", "Road") if word in text]


@pytest.mark.slow
def test_ten_thousand_private_attributes_are_counted(tmp_path: Path) -> None:
    made = dataset(gradient())
    for number in range(10_000):
        made.add_new((0x0009 + 2 * (number // 200)) << 16 | 0x1000 + number % 200, "LO", NAME)
    facts = facts_of(write(tmp_path / "a.dcm", made))
    assert (facts.private, facts.complete) == (10_000, True)


def test_more_elements_than_are_looked_at_are_said_to_be_so(tmp_path: Path) -> None:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 8) + struct.pack("<HH2sH", 0x0008, 0x0050, b"SH", 0)
    content = item * (MAX_ELEMENTS // 2 + 10)
    sequence = struct.pack("<HH2sHI", 0x0040, 0x0275, b"SQ", 0, len(content)) + content
    path = write(tmp_path / "a.dcm", dataset())
    path.write_bytes(path.read_bytes() + sequence)
    facts = facts_of(path)
    assert not facts.complete
    assert facts.why_not_deidentified


def test_a_value_that_is_far_away_is_not_read(tmp_path: Path) -> None:
    """A gigabyte in a private attribute: a hole in the file, passed over."""
    path = write(tmp_path / "a.dcm", dataset())
    with path.open("ab") as file:
        file.write(struct.pack("<HH2sHI", 0x0041, 0x1001, b"OB", 0, 2**30))
        file.truncate(file.tell() + 2**30)
    with opened(path) as file:
        header = read_header(file)
        facts = look_through(file, header)
    assert (facts.private, facts.complete) == (1, True)


@pytest.mark.parametrize("depth", [10, 5000])
def test_depth_costs_nothing(tmp_path: Path, depth: int) -> None:
    content = b""
    for _ in range(depth):
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
        content = struct.pack("<HH2sHI", 0x0040, 0x0275, b"SQ", 0, len(item)) + item
    path = write(tmp_path / "a.dcm", dataset())
    path.write_bytes(path.read_bytes() + content)
    facts = facts_of(path)
    assert (facts.texts, facts.complete) == (depth, True)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_bytes_a_header_has_the_walk_ends_with_facts_where_it_began(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    content = bytearray(write(folder / "a.dcm", everything()).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(140, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(200, len(content)))
    (folder / "a.dcm").write_bytes(content[:cut])
    with opened(folder / "a.dcm", max_inflated=MAX_INFLATED_BYTES) as file:
        try:
            header = read_header(file)
        except Unusable:
            return
        end = file.tell()
        facts = look_through(file, header)
        assert file.tell() == end
    IdentifyingFacts.model_validate_json(facts.model_dump_json())


def test_the_table_is_the_standards() -> None:
    assert len(IDENTIFYING) > 500
    assert kind_of(0x00100010) == (Kind.PATIENT, False)
    assert kind_of(0x00100030) == (Kind.DATES, False)
    assert kind_of(0x00101040) == (Kind.PATIENT, True)
    assert kind_of(0x00080080) == (Kind.PEOPLE, False)
    assert kind_of(0x00104000) == (Kind.PATIENT, True)
    assert kind_of(0x00091001) == (Kind.PRIVATE, True)
    assert kind_of(0x60023000) == (Kind.GRAPHICS, True)
    assert kind_of(0x00100020) is None
    assert kind_of(0x00280010) is None


@pytest.mark.slow
@pytest.mark.skipif("COLLEGIUM_DATA" not in os.environ, reason="COLLEGIUM_DATA is not set")
def test_real_files_have_the_attributes_that_pydicom_finds_in_them() -> None:
    compared = 0
    for path in sorted((Path(os.environ["COLLEGIUM_DATA"]) / "dicom").rglob("*")):
        if not path.is_file():
            continue
        try:
            facts = facts_of(path)
            whole = dcmread(path, stop_before_pixels=True)
            found = Counter(
                kind[0].field
                for element in whole.iterall()
                if (kind := kind_of(int(element.tag))) is not None and says_something(element.value)
            )
        except Exception:  # noqa: BLE001 - broken files are others' tests
            continue
        compared += 1
        assert facts.complete, path.name
        assert set(counts(facts)) == set(found), path.name
        assert counts(facts)["dates"] == found["dates"] if "dates" in found else True, path.name
    assert compared > 100


def says_something(value: object) -> bool:
    if isinstance(value, int | float):
        return value != 0
    text = value if isinstance(value, str | bytes) else str(value or "")
    return bool(text.strip(b" \0") if isinstance(text, bytes) else text.strip(" \0"))
