"""Odd, broken and hostile files: each gives one named reason, quickly, and says nothing of a patient."""

import logging
import os
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    NAME,
    dataset,
    gradient,
    jpeg_dataset,
    make_image,
    rt_plan,
    uid,
    write,
    write_nested,
    write_truncated,
)
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from client.dicom_file import (
    MAX_HEADER_BYTES,
    MAX_INFLATED_BYTES,
    Identifiers,
    Unusable,
    identifiers_of,
    opened,
    read_header,
)
from client.dicom_image import MAX_PIXEL_BYTES, check_image, read_image
from client.preparation import prepare
from client.reasons import LabelProblem, Reason

GREY = make_image()
PATIENT = "PAT-0001"


def reason(path: Path, image=GREY) -> Reason:
    """Why the file is unusable; its text must not name the patient."""
    with pytest.raises(Unusable) as finding:
        prepare(read_image(path, image), image)
    for secret in (PATIENT, "Oftering", uid(PATIENT, "1", "1"), str(path)):
        assert secret not in str(finding.value)
    assert finding.value.__cause__ is None
    assert finding.value.__suppress_context__ or finding.value.__context__ is None
    return finding.value.reason


def with_file_meta(made: Dataset, **attributes: object) -> Dataset:
    for keyword, value in attributes.items():
        setattr(made.file_meta, keyword, value)
    return made


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (rt_plan, Reason.NOT_AN_IMAGE),
        (lambda: dataset(SOPClassUID=MediaStorageDirectoryStorage, modality=""), Reason.NOT_AN_IMAGE),
        (lambda: dataset(gradient(), modality="MR"), Reason.OTHER_MODALITY),
        (lambda: dataset(gradient(), modality=""), Reason.OTHER_MODALITY),
        (lambda: dataset(modality="CR"), Reason.TRUNCATED),
        (lambda: dataset(gradient(), NumberOfFrames=2), Reason.MULTI_FRAME),
        (lambda: dataset(gradient(), Rows=0), Reason.BAD_ATTRIBUTE),
        (lambda: dataset(gradient(), Rows=None), Reason.BAD_ATTRIBUTE),
        (lambda: dataset(gradient(), BitsStored=9), Reason.BAD_ATTRIBUTE),
        (lambda: dataset(gradient(), PixelRepresentation=None), Reason.BAD_ATTRIBUTE),
        (lambda: dataset(gradient(), SamplesPerPixel=3), Reason.BAD_ATTRIBUTE),
        (lambda: dataset(gradient(), BitsAllocated=64, BitsStored=64), Reason.UNSUPPORTED_PIXELS),
        (lambda: dataset(gradient(), photometric="HSV"), Reason.UNSUPPORTED_PIXELS),
        (lambda: dataset(gradient(), photometric=""), Reason.UNSUPPORTED_PIXELS),
        (lambda: dataset(np.zeros((4, 4, 3), "uint8"), photometric="RGB"), Reason.CHANNEL_MISMATCH),
        (lambda: dataset(gradient(), Rows=17), Reason.TRUNCATED),
        (lambda: dataset(gradient(), Rows=65535, Columns=65535), Reason.TOO_LARGE),
    ],
)
def test_each_kind_of_file_has_its_reason(
    tmp_path: Path, made: Callable[[], Dataset], expected: Reason
) -> None:
    assert reason(write(tmp_path / "one.dcm", made())) is expected


def test_a_grey_image_is_refused_by_a_study_in_colour(tmp_path: Path) -> None:
    path = write(tmp_path / "one.dcm", dataset(gradient()))
    assert reason(path, make_image(channels=3)) is Reason.CHANNEL_MISMATCH


def test_a_text_file_is_not_dicom(tmp_path: Path) -> None:
    path = tmp_path / "readme.txt"
    for text in (b"", b"short", b"a note about a patient\n" * 100):
        path.write_bytes(text)
        assert reason(path) is Reason.NOT_DICOM


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").symlink_to(tmp_path)
    for name in ("pipe", "gone", "folder"):
        assert reason(tmp_path / name) is Reason.NOT_A_FILE


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_that_may_not_be_read_has_its_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "one.dcm", dataset(gradient()))
    path.chmod(0)
    assert reason(path) is Reason.NOT_READABLE


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "jpeg", "rle"])
def test_a_truncated_file_has_a_reason_wherever_it_ends(tmp_path: Path, kind: str) -> None:
    image = make_image(modalities=("XC",), channels=3) if kind == "jpeg" else GREY
    made = jpeg_dataset(np.zeros((32, 32, 3), "uint8")) if kind == "jpeg" else dataset(gradient())
    if kind == "rle":
        made.compress(RLELossless, encoding_plugin="pydicom")
    whole = write(tmp_path / "whole.dcm", made).read_bytes()
    prepare(read_image(tmp_path / "whole.dcm", image), image)
    found = set()
    for length in range(0, len(whole) - 1 - 8 * (kind != "plain"), 3):  # the last 8 bytes are a delimiter
        path = tmp_path / "part.dcm"
        path.write_bytes(whole[:length])
        found.add(reason(path, image))
    assert Reason.TRUNCATED in found
    assert found <= {
        Reason.TRUNCATED,
        Reason.NOT_DICOM,
        Reason.BROKEN_HEADER,
        Reason.NOT_AN_IMAGE,
        Reason.OTHER_MODALITY,  # half of XC is X
        Reason.BAD_ATTRIBUTE,
        Reason.UNSUPPORTED_PIXELS,
        Reason.UNDECODABLE,
    }


def test_half_of_the_pixel_data_missing_is_called_truncated(tmp_path: Path) -> None:
    assert reason(write_truncated(tmp_path / "one.dcm", dataset(gradient()))) is Reason.TRUNCATED


def test_a_file_that_claims_nine_gigabytes_is_refused_without_reserving_them(tmp_path: Path) -> None:
    made = dataset(gradient(), Rows=65535, Columns=65535, BitsAllocated=16, BitsStored=16, HighBit=15)
    path = write(tmp_path / "one.dcm", made)
    whole = path.read_bytes()
    claimed = whole.replace(
        (256).to_bytes(4, "little") + gradient().tobytes(), b"\xf0\xff\xff\xff" + b"\0" * 256
    )
    assert claimed != whole
    path.write_bytes(claimed)
    tracemalloc.start()
    begun = time.perf_counter()
    assert reason(path) is Reason.TOO_LARGE
    assert time.perf_counter() - begun < 1.0
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_a_value_that_claims_gigabytes_is_read_only_as_far_as_the_file_goes(tmp_path: Path) -> None:
    """PatientID, in the header, in UN with a 32-bit length of almost 4 GB."""
    path = write(tmp_path / "one.dcm", dataset(gradient()))
    whole = path.read_bytes()
    at = whole.index(b"\x10\x00\x20\x00LO")
    path.write_bytes(whole[:at] + b"\x10\x00\x20\x00UN\0\0\xf0\xff\xff\xff" + whole[at + 8 :])
    tracemalloc.start()
    assert reason(path) is Reason.TRUNCATED
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def deflated(path: Path, made: Dataset, more: bytes = b"") -> Path:
    """The data set deflated, with *more* behind it."""
    plain = write(path, made).read_bytes()
    body = plain.index(b"\x08\x00\x16\x00")  # SOPClassUID
    write(path, with_file_meta(made, TransferSyntaxUID=DeflatedExplicitVRLittleEndian))
    start = path.read_bytes()
    start = start[: start.index(DeflatedExplicitVRLittleEndian.encode())]
    meta = plain[len(start) : body].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99", 1)
    squeeze = zlib.compressobj(9, wbits=-15)
    path.write_bytes(start + meta + squeeze.compress(plain[body:]) + squeeze.compress(more) + squeeze.flush())
    return path


def test_a_deflated_file_gives_the_image_of_the_plain_one(tmp_path: Path) -> None:
    made = dataset(gradient(64, 64, dtype="uint16", high=4095), bits_stored=12)
    expected = prepare(read_image(write(tmp_path / "plain.dcm", made), GREY), GREY)
    path = deflated(tmp_path / "one.dcm", made)
    assert path.stat().st_size < (tmp_path / "plain.dcm").stat().st_size
    np.testing.assert_array_equal(prepare(read_image(path, GREY), GREY), expected)


@pytest.mark.slow
def test_a_deflated_file_that_is_damaged_has_a_reason_wherever_it_is(tmp_path: Path) -> None:
    whole = deflated(tmp_path / "whole.dcm", dataset(gradient())).read_bytes()
    path, found = tmp_path / "one.dcm", set()
    for length in range(380, len(whole) - 8, 3):
        path.write_bytes(whole[:length])
        found.add(reason(path))
    assert found <= {Reason.TRUNCATED, Reason.BROKEN_HEADER, Reason.OTHER_MODALITY, Reason.NOT_AN_IMAGE}


@pytest.mark.thorough
@pytest.mark.parametrize("behind", ["header", "pixels"])
def test_what_is_deflated_a_thousand_times_is_inflated_only_as_far_as_it_may_be(
    tmp_path: Path, behind: str
) -> None:
    """A gigabyte of zeros behind the header is skipped or refused; behind the pixels it is never looked at."""
    made, zeros = dataset(gradient()), bytes(2**30)
    if behind == "pixels":
        path = deflated(tmp_path / "one.dcm", made, b"\xfc\xff\xfc\xffOB\0\0\0\0\0\x40" + zeros)
        read = lambda: prepare(read_image(path, GREY), GREY)  # noqa: E731
    else:
        plain = write(tmp_path / "plain.dcm", made).read_bytes()
        pixels = plain.index(b"\xe0\x7f\x10\x00")
        bomb = b"\x29\x00\x10\x10OB\0\0\0\0\0\x40" + zeros
        body = plain.index(b"\x08\x00\x16\x00")
        path = deflated(tmp_path / "one.dcm", made)
        squeeze = zlib.compressobj(9, wbits=-15)
        packed = (
            squeeze.compress(plain[body:pixels]) + squeeze.compress(bomb) + squeeze.compress(plain[pixels:])
        )
        path.write_bytes(path.read_bytes()[: meta_end(path)] + packed + squeeze.flush())
        read = lambda: reason(path)  # noqa: E731
    assert path.stat().st_size < 2**21
    tracemalloc.start()
    with opened(path) as file:
        try:
            check_image(read_header(file), file, GREY)
        except Unusable as finding:
            assert finding.reason is Reason.TRUNCATED
    assert tracemalloc.get_traced_memory()[1] < 1.5 * MAX_HEADER_BYTES
    read()
    assert tracemalloc.get_traced_memory()[1] < 1.5 * MAX_INFLATED_BYTES
    tracemalloc.stop()


def meta_end(path: Path) -> int:
    """Where the data set begins: behind the file meta information, whose length is at byte 140."""
    return 144 + int.from_bytes(path.read_bytes()[140:144], "little")


@pytest.mark.slow
def test_a_header_of_endless_small_items_is_refused_soon(tmp_path: Path) -> None:
    """Eight bytes make an item, and a parsed one takes a thousand: these 40 MB would take 5 GB."""
    path = write(tmp_path / "one.dcm", dataset(gradient()))
    whole = path.read_bytes()
    at = whole.index(b"\xe0\x7f\x10\x00")
    sequence = struct.pack("<HH2sHI", 0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF)
    path.write_bytes(whole[:at] + sequence + b"\xfe\xff\x00\xe0\0\0\0\0" * 5_000_000)
    assert reason(path) is Reason.TOO_LARGE


def test_a_jpeg_stream_that_is_larger_than_its_header_says_is_refused(tmp_path: Path) -> None:
    made = jpeg_dataset(np.zeros((64, 64, 3), "uint8"))
    made.Rows = made.Columns = 8
    path = write(tmp_path / "one.dcm", made)
    assert reason(path, make_image(modalities=("XC",), channels=3)) is Reason.UNDECODABLE


def test_sequences_nested_without_end_do_not_end_the_program(tmp_path: Path) -> None:
    assert reason(write_nested(tmp_path / "one.dcm", depth=5000)) is Reason.TOO_DEEP


def test_a_compression_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    made = jpeg_dataset(np.zeros((8, 8, 3), "uint8"))
    path = write(tmp_path / "one.dcm", with_file_meta(made, TransferSyntaxUID=MPEG2MPML))
    image = make_image(modalities=("XC",), channels=3)
    assert reason(path, image) is Reason.UNSUPPORTED_TRANSFER_SYNTAX
    path.write_bytes(path.read_bytes().replace(MPEG2MPML.encode(), b"OFTERING^WALBURGA.1.223"))
    assert reason(path, image) is Reason.UNSUPPORTED_TRANSFER_SYNTAX


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nothing_of_a_file_reaches_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The parser complains about a value that is too long by quoting it."""
    with caplog.at_level(logging.DEBUG):
        path = write(tmp_path / "one.dcm", dataset(gradient(), AccessionNumber=f"{NAME} and more"))
        prepare(read_image(path, GREY), GREY)
        with opened(path) as file:
            assert NAME in identifiers_of(read_header(file)).AccessionNumber
    assert not caplog.text


@pytest.mark.slow
@given(st.data())
def test_no_change_of_bytes_gives_anything_but_an_image_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.dcm"
    made = dataset(gradient(), WindowCenter=3, WindowWidth=9, SOPClassUID=SecondaryCaptureImageStorage)
    whole = bytearray(write(path, made).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(128, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(whole))
    try:
        found = prepare(read_image(path, make_image(intensity="window")), make_image(intensity="window"))
    except Unusable as finding:
        assert "Oftering" not in str(finding)
    else:
        assert np.isfinite(found).all()


def test_the_patients_name_is_never_read(tmp_path: Path) -> None:
    with opened(write(tmp_path / "one.dcm", dataset(gradient()))) as file:
        header = read_header(file)
    assert "PatientName" not in header
    assert "Oftering" not in str(header)


def test_identifiers_come_without_padding_and_are_not_shown(tmp_path: Path) -> None:
    with opened(write(tmp_path / "one.dcm", dataset(gradient(), patient=" P 1 "))) as file:
        found = identifiers_of(read_header(file))
    assert found.PatientID == "P 1"
    assert "P 1" not in repr(found)


def test_an_empty_identifier_is_named_by_its_attribute() -> None:
    found = Identifiers(PatientID="", StudyInstanceUID="1", AccessionNumber="", SOPInstanceUID="2")
    found.require("StudyInstanceUID", "SOPInstanceUID")
    with pytest.raises(Unusable, match="PatientID, AccessionNumber is empty") as finding:
        found.require("PatientID", "AccessionNumber")
    assert finding.value.reason is Reason.MISSING_IDENTIFIER


def test_every_reason_has_its_own_code_a_sentence_and_a_remedy() -> None:
    for table in (Reason, LabelProblem):
        assert len({entry.code for entry in table}) == len(table)
        for entry in table:
            assert entry.sentence.endswith((".", ")."))
            assert entry.remedy.endswith((".", ")."))


def test_the_limit_lets_every_usual_single_image_pass() -> None:
    assert MAX_PIXEL_BYTES >= 6000 * 5000 * 2  # a large mammogram
    assert MAX_PIXEL_BYTES >= 50e6 * 3  # a photograph of 50 megapixels


def _real_files() -> list[Path]:
    folder = Path(os.environ.get("COLLEGIUM_DATA", "")) / "dicom"
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.skipif("COLLEGIUM_DATA" not in os.environ, reason="COLLEGIUM_DATA is not set")
@pytest.mark.parametrize("channels", [1, 3])
def test_every_real_odd_file_gives_an_image_or_one_reason(channels: int) -> None:
    modalities = ("CR", "DX", "CT", "MR", "US", "OT", "XA", "RF", "MG", "NM", "ES", "XC", "")
    image = make_image(channels=channels, modalities=modalities, rows=24, columns=32, intensity="window")
    files = _real_files()
    assert files
    usable = 0
    for path in files:
        try:
            found = prepare(read_image(path, image), image)
        except Unusable as finding:
            assert finding.reason in set(Reason)
        else:
            usable += 1
            assert found.shape == (channels, 24, 32)
            assert np.isfinite(found).all()
            assert found.min() >= 0.0
            assert found.max() <= 1.0
    assert usable >= 20


def test_what_is_deflated_twice_behind_a_second_copy_of_the_syntax_is_not_inflated_twice(
    tmp_path: Path,
) -> None:
    """Were the copy in the preamble replaced, pydicom would inflate what we inflated, without a limit."""
    made = dataset(gradient())
    plain = write(tmp_path / "plain.dcm", made).read_bytes()
    path = deflated(tmp_path / "one.dcm", made)
    head = bytearray(path.read_bytes()[: meta_end(path)])
    syntax = DeflatedExplicitVRLittleEndian.encode()
    head[: len(syntax)] = syntax
    body = plain[plain.index(b"\x08\x00\x16\x00") : plain.index(b"\xe0\x7f\x10\x00")]
    bomb = squeezed(body + b"\x29\x00\x10\x10OB\0\0\0\0\0\x04" + bytes(2**26))
    path.write_bytes(bytes(head) + squeezed(bomb))
    tracemalloc.start()
    with opened(path) as file, suppress(Unusable):
        read_header(file)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def squeezed(plain: bytes) -> bytes:
    squeeze = zlib.compressobj(9, wbits=-15)
    return squeeze.compress(plain) + squeeze.flush()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("codec", "value"), [("utf_7", "P\ud800"), ("punycode", "P"), ("idna", "P")])
def test_a_character_set_that_is_a_codec_of_python_is_refused(tmp_path: Path, codec: str, value: str) -> None:
    """UTF-7 makes halves of characters, of which no pseudonym can be made: the whole index would end."""
    path = write(tmp_path / "one.dcm", dataset(gradient(), SpecificCharacterSet=codec, PatientID=value))
    with opened(path) as file, pytest.raises(Unusable) as told:
        read_header(file)
    assert told.value.reason is Reason.BAD_ATTRIBUTE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["ISO_IR 192", "ISO-IR 100", "utf8", "latin1", "nobody knows", "GB18030"])
def test_a_character_set_of_dicom_misspelt_or_unknown_is_read(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "one.dcm", dataset(gradient(), SpecificCharacterSet=name))
    with opened(path) as file:
        assert identifiers_of(read_header(file)).PatientID == "PAT-0001"
