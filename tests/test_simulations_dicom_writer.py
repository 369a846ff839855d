"""What is written is valid DICOM, holds exactly the given picture, and is the same every time."""

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_voi_lut
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from simulations.preparation.dicom_writer import (
    GreyPicture,
    Header,
    JpegPicture,
    Subject,
    derived_uid,
    dicom_bytes,
)
from simulations.preparation.jpeg import JpegError, read_jpeg_frame

SUBJECT = Subject(patient_id="hospital-1-00001", name="Phantom^0001", sex="F", age_years=45)
RAMP = (np.arange(33 * 27, dtype=np.uint16).reshape(33, 27) * 5) % 1024
GREY_KINDS = ("digital-x-ray", "computed-radiography", "ultrasound")
TRANSFER_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless)


def header(kind: str, image: int = 1) -> Header:
    x_ray = kind in ("digital-x-ray", "computed-radiography")
    return Header(
        dataset="test",
        hospital="hospital-1",
        subject=SUBJECT,
        image=image,
        kind=kind,
        station="Lumen^Aurora",
        kvp=110.0 if x_ray else None,
        pixel_spacing=1.5 if x_ray else None,
    )


def jpeg(
    *, quality: int = 80, subsampling: int = 2, mode: str = "RGB", size: int = 40, **options: bool
) -> bytes:
    noise = np.random.default_rng(3).integers(0, 256, (size, size + 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(
        buffer, "JPEG", quality=quality, subsampling=subsampling, **options
    )
    return buffer.getvalue()


def read(content: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(content))


def shown(dataset: pydicom.Dataset) -> NDArray[np.float64]:
    """The picture on a screen: windowed as the file says, MONOCHROME1 turned round, 0 to 1."""
    values = apply_voi_lut(dataset.pixel_array, dataset).astype(np.float64) / (2**dataset.BitsStored - 1)
    return 1.0 - values if dataset.PhotometricInterpretation == "MONOCHROME1" else values


def errors_of(path: Path) -> list[str]:
    found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    return [line for line in (found.stdout + found.stderr).splitlines() if "Error" in line]


needs_dciodvfy = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: apt install dicom3tools)"
)


@needs_dciodvfy
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("transfer_syntax", TRANSFER_SYNTAXES, ids=lambda uid: uid.name)
@pytest.mark.parametrize("kind", GREY_KINDS)
def test_dciodvfy_finds_no_error_in_grey_images(
    kind: str, transfer_syntax: UID, inverted: bool, tmp_path: Path
) -> None:
    is_ultrasound = kind == "ultrasound"
    picture = GreyPicture(
        pixels=(RAMP % 256).astype(np.uint8) if is_ultrasound else RAMP,
        bits_stored=8 if is_ultrasound else 10,
        inverted=inverted and not is_ultrasound,
        transfer_syntax=transfer_syntax,
    )
    path = tmp_path / "image.dcm"
    path.write_bytes(dicom_bytes(header(kind), picture))
    assert errors_of(path) == []


@needs_dciodvfy
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_dciodvfy_finds_no_error_in_photographs(subsampling: int, tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(dicom_bytes(header("photograph"), JpegPicture(stream=jpeg(subsampling=subsampling))))
    assert errors_of(path) == []


@needs_dciodvfy
def test_the_check_with_dciodvfy_can_fail(tmp_path: Path) -> None:
    dataset = read(dicom_bytes(header("digital-x-ray"), GreyPicture(pixels=RAMP, bits_stored=10)))
    del dataset.PixelIntensityRelationship
    dataset.save_as(tmp_path / "image.dcm")
    assert errors_of(tmp_path / "image.dcm") != []


@pytest.mark.slow
@given(
    bits=st.sampled_from([8, 10, 12, 16]),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    inverted=st.booleans(),
    transfer_syntax=st.sampled_from(TRANSFER_SYNTAXES),
    seed=st.integers(0, 1000),
)
def test_grey_values_come_back_as_they_were(
    bits: int, rows: int, columns: int, inverted: bool, transfer_syntax: UID, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns)).astype(np.uint16)
    picture = GreyPicture(pixels=pixels, bits_stored=bits, inverted=inverted, transfer_syntax=transfer_syntax)
    dataset = read(dicom_bytes(header("computed-radiography"), picture))
    stored = dataset.pixel_array.astype(np.int64)
    assert dataset.file_meta.TransferSyntaxUID == transfer_syntax
    np.testing.assert_array_equal(2**bits - 1 - stored if inverted else stored, pixels)


def test_monochrome1_shows_the_same_picture_as_monochrome2() -> None:
    pictures = [GreyPicture(pixels=RAMP, bits_stored=10, inverted=inverted) for inverted in (False, True)]
    plain, turned = (read(dicom_bytes(header("digital-x-ray"), picture)) for picture in pictures)
    assert (plain.PhotometricInterpretation, plain.PresentationLUTShape) == ("MONOCHROME2", "IDENTITY")
    assert (turned.PhotometricInterpretation, turned.PresentationLUTShape) == ("MONOCHROME1", "INVERSE")
    np.testing.assert_allclose(shown(plain), shown(turned), atol=1.5 / 1023)


def test_a_jpeg_stream_is_carried_byte_for_byte_whether_its_length_is_odd_or_even() -> None:
    streams = [jpeg(quality=quality) for quality in range(60, 90)]
    assert {len(stream) % 2 for stream in streams} == {0, 1}
    for stream in streams:
        dataset = read(dicom_bytes(header("photograph"), JpegPicture(stream=stream)))
        (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
        assert frame[: len(stream)] == stream
        assert frame[len(stream) :] in (b"", b"\x00")
        assert dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_photograph_states_its_lossy_compression_and_decodes_to_the_source_colours(
    subsampling: int,
) -> None:
    stream = jpeg(subsampling=subsampling)
    dataset = read(dicom_bytes(header("photograph"), JpegPicture(stream=stream)))
    assert (dataset.LossyImageCompression, dataset.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert float(dataset.LossyImageCompressionRatio) == pytest.approx(40 * 50 * 3 / len(stream), abs=0.01)
    with Image.open(io.BytesIO(stream)) as source:
        decoded = dataset.pixel_array.astype(int)
        np.testing.assert_allclose(decoded, np.asarray(source).astype(int), atol=2)  # two roundings of YCbCr


@pytest.mark.parametrize(
    ("subsampling", "mode", "photometric"),
    [(0, "RGB", "YBR_FULL"), (1, "RGB", "YBR_FULL_422"), (2, "RGB", "YBR_FULL_422"), (0, "L", "MONOCHROME2")],
)
def test_the_photometric_interpretation_follows_the_stream(
    subsampling: int, mode: str, photometric: str
) -> None:
    frame = read_jpeg_frame(jpeg(subsampling=subsampling, mode=mode))
    assert frame.photometric_interpretation == photometric
    assert (frame.rows, frame.columns, frame.num_components) == (40, 50, 1 if mode == "L" else 3)


def test_a_progressive_jpeg_is_refused() -> None:
    with pytest.raises(JpegError, match=r"progressive \(SOF2\)"):
        dicom_bytes(header("photograph"), JpegPicture(stream=jpeg(progressive=True)))


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "starts with nothing"),
        (b"GIF89a", "not a JPEG stream"),
        (jpeg()[:-40], "truncated"),
        (b"\xff\xd8\xff\xd9", "no frame header"),
        (b"\xff\xd8\x00\x00\x00\x00\xff\xd9", "no marker at byte 2"),
        (b"\xff\xd8\xff\xc0\x00\x04\x08\x00\xff\xd9", "cut short"),
        (jpeg(mode="CMYK", subsampling=0), "4 components"),
    ],
)
def test_damaged_and_unfitting_streams_are_refused_with_the_reason(stream: bytes, message: str) -> None:
    with pytest.raises(JpegError, match=message):
        read_jpeg_frame(stream)


@given(st.binary(max_size=200))
def test_no_stream_whatsoever_makes_the_reader_fail_otherwise(noise: bytes) -> None:
    for stream in (noise, b"\xff\xd8" + noise + b"\xff\xd9"):
        try:
            read_jpeg_frame(stream)
        except JpegError:
            continue


def test_the_same_header_and_picture_give_the_same_bytes() -> None:
    picture = GreyPicture(pixels=RAMP, bits_stored=10, transfer_syntax=RLELossless)
    assert dicom_bytes(header("digital-x-ray"), picture) == dicom_bytes(header("digital-x-ray"), picture)


def test_images_of_one_study_share_study_and_series_and_differ_in_themselves() -> None:
    picture = GreyPicture(pixels=RAMP, bits_stored=10)
    first, second = (read(dicom_bytes(header("digital-x-ray", image), picture)) for image in (1, 2))
    assert first.StudyInstanceUID == second.StudyInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID


def test_names_that_meet_only_when_joined_get_different_uids() -> None:
    assert derived_uid("a", "b/c") != derived_uid("a/b", "c")
    assert len(derived_uid("a")) <= 64


def test_sex_and_age_are_written_as_dicom_wants_them() -> None:
    dataset = read(dicom_bytes(header("ultrasound"), GreyPicture(pixels=np.zeros((4, 4), np.uint8))))
    assert (dataset.PatientSex, dataset.PatientAge, str(dataset.PatientName)) == ("F", "045Y", "Phantom^0001")


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="age_years is 200"):
        Subject(patient_id="1", name="x", age_years=200)
    with pytest.raises(ValueError, match="sex is 'female'"):
        Subject(patient_id="1", name="x", sex="female")
    with pytest.raises(ValueError, match="at most 255 for bits_stored = 8"):
        dicom_bytes(header("ultrasound"), GreyPicture(pixels=RAMP, bits_stored=8))
    with pytest.raises(ValueError, match="kind is 'mri'"):
        dicom_bytes(header("mri"), GreyPicture(pixels=RAMP, bits_stored=10))
