"""DICOMDIR: it is no unusable image, and files that it names and that are not there are counted."""

import gc
import shutil
import struct
import tracemalloc
import warnings
from pathlib import Path

import pytest
from dicom_files import SECRET, Hospital, dataset, gradient, make_study, write
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.fileset import FileSet
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import MediaStorageDirectoryStorage

from client.dicomdir import is_dicomdir, referenced_files
from client.ingestion import ingest

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom's of its own FileSet

FOUR_HOURS = {
    "StudyDate": "20240310",
    "StudyTime": "101500",
    "StudyID": "1",
    "SeriesNumber": 1,
    "InstanceNumber": 1,
}


@pytest.fixture
def export(tmp_path: Path) -> Hospital:
    """A hospital whose images folder is an export of four patients with a DICOMDIR."""
    hospital = Hospital(tmp_path / "site")
    files = FileSet()
    rows = []
    for number in range(4):
        patient = f"PAT-{number}"
        files.add(
            write(tmp_path / "one" / f"{number}.dcm", dataset(gradient(), patient=patient, **FOUR_HOURS))
        )
        rows.append((patient, "yes" if number % 2 else "no"))
    files.write(hospital.images / "export")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom leaves its temporary folders to the garbage collector
        del files
        gc.collect()
    hospital.label(rows)
    return hospital


def images(hospital: Hospital) -> list[Path]:
    found = sorted(path for path in hospital.images.rglob("*") if path.is_file() and path.name != "DICOMDIR")
    assert len(found) == 4
    return found


@pytest.mark.slow
def test_a_whole_export_has_nothing_unusable(export: Hospital) -> None:
    index = ingest(export.site(), make_study(), SECRET).index
    assert index.left_out_counts == {"dicomdir": 1}
    assert (len(index.images), index.unusable_share) == (4, 0.0)


@pytest.mark.slow
def test_files_that_an_export_lacks_are_counted_by_their_paths(export: Hospital) -> None:
    gone = images(export)[1:3]
    for path in gone:
        path.unlink()
    index = ingest(export.site(), make_study(), SECRET).index
    assert index.left_out_counts == {"missing-file": 2, "dicomdir": 1}
    told = {file.path for file in index.left_out if file.reason.code == "missing-file"}
    assert told == {path.relative_to(export.images).as_posix() for path in gone}
    assert (len(index.images), index.unusable_share, index.num_files) == (2, 0.5, 5)


@pytest.mark.slow
def test_names_that_were_made_small_when_copying_are_the_same(export: Hospital) -> None:
    for path in images(export):
        small = export.images / "export" / Path(str(path.relative_to(export.images / "export")).lower())
        small.parent.mkdir(parents=True, exist_ok=True)
        path.rename(small)
    index = ingest(export.site(), make_study(), SECRET).index
    assert index.left_out_counts == {"dicomdir": 1}


@pytest.mark.slow
def test_a_file_that_is_there_and_broken_has_its_own_reason(export: Hospital) -> None:
    images(export)[0].write_bytes(b"junk")
    index = ingest(export.site(), make_study(), SECRET).index
    assert index.left_out_counts == {"not-dicom": 1, "dicomdir": 1}


@pytest.mark.thorough
@pytest.mark.parametrize("parts", [["..", "secret"], ["a/b"], ["/etc", "passwd"], ["."]])
def test_a_dicomdir_that_points_elsewhere_is_refused_and_nothing_else_is(
    export: Hospital, parts: list[str]
) -> None:
    path = export.images / "export" / "DICOMDIR"
    made = dcmread(path)
    record = next(one for one in made.DirectoryRecordSequence if "ReferencedFileID" in one)
    record.ReferencedFileID = parts
    made.save_as(path)
    index = ingest(export.site(), make_study(), SECRET).index
    assert index.left_out_counts == {"bad-attribute": 1}
    assert len(index.images) == 4


def test_a_file_that_is_only_called_so_is_none(export: Hospital, tmp_path: Path) -> None:
    other = export.images / "DICOMDIR"
    shutil.copyfile(images(export)[0], other)
    assert not is_dicomdir(other)
    other.write_bytes(b"junk")
    assert not is_dicomdir(other)
    assert is_dicomdir(export.images / "export" / "DICOMDIR")


def dicomdir(path: Path, records: bytes) -> Path:
    """A DICOMDIR of these items, in a sequence of undefined length."""
    made = write(path.with_name("other"), dataset(gradient()))
    made = dcmread(made)
    made.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_file_meta_info(buffer, made.file_meta)
    sequence = struct.pack("<HH2sHI", 0x0004, 0x1220, b"SQ", 0, 0xFFFFFFFF)
    path.write_bytes(bytes(128) + b"DICM" + buffer.getvalue() + sequence + records)
    return path


@pytest.mark.slow
def test_a_dicomdir_of_endless_empty_records_holds_nothing_of_them(tmp_path: Path) -> None:
    """Eight bytes make a record, and a parsed one takes a hundred times as many."""
    path = dicomdir(tmp_path / "DICOMDIR", struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 10_000)
    assert is_dicomdir(path)
    tracemalloc.start()
    assert referenced_files(path) == ()
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.slow
def test_a_large_dicomdir_whose_records_have_no_lengths_is_one(tmp_path: Path) -> None:
    """Each record takes more reads than an image's header may have for all its items together."""
    delimiter = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    records = b"".join(
        struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        + struct.pack("<HH2sHI", 0x0004, 0x1400, b"UL", 4, 0) * 40
        + struct.pack("<HH2sH", 0x0004, 0x1500, b"CS", 8)
        + b"IM%06d" % number
        + delimiter
        for number in range(3000)
    )
    path = dicomdir(tmp_path / "DICOMDIR", records + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    assert is_dicomdir(path)
    assert len(referenced_files(path)) == 3000
