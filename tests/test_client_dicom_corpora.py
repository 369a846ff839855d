"""Every file of the public corpora, and independent decoders beside ours."""

import os
import shutil
import subprocess
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from dicom_files import dataset, write
from dicom_outcomes import MODALITIES, corpus, folder, outcome, read_table, stored_values, wanted
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from client.decoders import is_native
from client.decoding import DecodingWorker
from client.dicom_file import Unusable
from client.dicom_image import read_image
from client.reasons import Reason

NO_DATA = pytest.mark.skipif("COLLEGIUM_DATA" not in os.environ, reason="COLLEGIUM_DATA is not set")
NO_DCMTK = pytest.mark.skipif(shutil.which("dcmdjpeg") is None, reason="dcmtk is not installed")
DCMTK = {
    JPEGBaseline8Bit: "dcmdjpeg",
    JPEGExtended12Bit: "dcmdjpeg",
    JPEGLossless: "dcmdjpeg",
    JPEGLosslessSV1: "dcmdjpeg",
    JPEGLSLossless: "dcmdjpls",
    JPEGLSNearLossless: "dcmdjpls",
    RLELossless: "dcmdrle",
}


@NO_DATA
@pytest.mark.slow
def test_every_file_gives_what_the_table_says() -> None:
    """Written anew on purpose: python tests/dicom_outcomes.py."""
    expected = {row.path: row for row in read_table()}
    assert {path.relative_to(folder()).as_posix() for path in corpus()} == expected.keys()
    slowest = 0.0
    with DecodingWorker() as worker:
        for path in corpus():
            begun = time.perf_counter()
            found = outcome(path, worker)
            slowest = max(slowest, time.perf_counter() - begun)
            row = expected[found.path]
            if row.pixels.startswith("mean "):
                assert found.pixels.startswith("mean ")
                assert float(found.pixels[5:]) == pytest.approx(float(row.pixels[5:]), abs=0.5)
                assert (found.outcome, found.shape) == (row.outcome, row.shape)
            else:
                assert found == row
        assert worker.num_starts == 1
    print(f"slowest file: {slowest:.2f} s")


@NO_DATA
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2026-05-26-oob-monochrome-46341.dcm", Reason.TOO_LARGE),
        ("2026-05-26-oob-monochrome-65535.dcm", Reason.TOO_LARGE),
        ("2026-05-06-Deeply-Nested-Sequence.dcm", Reason.TOO_DEEP),
    ],
)
def test_hostile_files_are_refused_before_memory_is_reserved_for_what_they_claim(
    name: str, expected: Reason
) -> None:
    path = folder() / "orthanc-odd" / name
    begun = time.process_time()
    with pytest.raises(Unusable) as finding:
        read_image(path, wanted(1))
    seconds = time.process_time() - begun
    tracemalloc.start()
    with pytest.raises(Unusable):
        read_image(path, wanted(1))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{name}: {seconds * 1000:.1f} ms, {most / 2**20:.1f} MiB")
    assert finding.value.reason is expected
    assert most < 16 * 2**20
    assert seconds < 5.0


def native_values(path: Path, frame: int) -> tuple[np.ndarray, str]:
    """Stored values of one frame of an uncompressed file, unpacked by hand, and the photometric interpretation."""
    made = dcmread(path)
    samples, allocated = int(made.SamplesPerPixel), int(made.BitsAllocated)
    rows, columns = int(made.Rows), int(made.Columns)
    if allocated == 1:
        bits = np.unpackbits(np.frombuffer(made.PixelData, dtype=np.uint8), bitorder="little")
        return bits[frame * rows * columns :][: rows * columns].reshape(rows, columns), "MONOCHROME2"
    big = "big" if not made.original_encoding[1] else "little"
    words = np.frombuffer(made.PixelData, dtype=f"{'>' if big == 'big' else '<'}u{allocated // 8}")
    values = words[frame * rows * columns * samples :][: rows * columns * samples].astype(np.uint64)
    values = values >> np.uint64(int(made.HighBit) + 1 - int(made.BitsStored))
    values = (values & np.uint64(2 ** int(made.BitsStored) - 1)).astype(np.int64)
    if made.PixelRepresentation == 1:
        values = np.where(
            values >= 2 ** (int(made.BitsStored) - 1), values - 2 ** int(made.BitsStored), values
        )
    if samples == 1:
        return values.reshape(rows, columns), made.PhotometricInterpretation
    if made.get("PlanarConfiguration") == 1:
        return np.moveaxis(values.reshape(samples, rows, columns), 0, -1), made.PhotometricInterpretation
    return values.reshape(rows, columns, samples), made.PhotometricInterpretation


def as_rgb(values: np.ndarray, photometric: str) -> tuple[np.ndarray, float]:
    """Red, green and blue by the standard's formula, and how far rounding may be off (PS3.3 C.7.6.3.1.2)."""
    if photometric != "YBR_FULL":
        return values, 0.0
    y, cb, cr = (values[..., channel].astype(float) - (128 if channel else 0) for channel in range(3))
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    return np.clip(np.rint(rgb), 0, 255), 1.0


def decoded_by_dcmtk(path: Path, made: Dataset, into: Path) -> Path | None:
    """The file without compression, or None where dcmtk cannot read it."""
    program = DCMTK.get(made.file_meta.TransferSyntaxUID)
    if program is None and not is_native(made.file_meta.TransferSyntaxUID):
        return None
    command = [program, str(path), str(into)] if program else ["dcmconv", "+te", str(path), str(into)]
    done = subprocess.run(command, capture_output=True, check=False)
    return into if done.returncode == 0 and into.exists() else None


@NO_DATA
@NO_DCMTK
@pytest.mark.slow
def test_dcmtk_decodes_the_corpora_to_the_same_values(tmp_path: Path) -> None:
    compared: dict[str, int] = {}
    for row in read_table():
        if row.outcome != "image" or row.shape.split()[1].startswith("float"):
            continue
        path = folder() / row.path
        channels = 3 if row.shape.split()[0].endswith("x3") else 1
        for image in (wanted(channels), wanted(4 - channels)):
            try:
                ours, lossy = stored_values(path, image)
            except Unusable:
                continue
            break
        made = dcmread(path)
        plain = decoded_by_dcmtk(path, made, tmp_path / "plain.dcm")
        if plain is None:
            continue
        frame = (max(1, int(made.get("NumberOfFrames") or 1)) - 1) // 2
        theirs, photometric = native_values(plain, frame)
        plain.unlink()
        if photometric == "YBR_FULL_422":  # half of its colours: dcmtk leaves it as it is
            continue
        theirs, tolerance = as_rgb(theirs, photometric)
        assert ours.shape == theirs.shape, row.path
        difference = np.abs(ours.astype(float) - theirs)
        if lossy:
            assert difference.mean() <= 0.5, row.path
            assert difference.max() <= 2 + 2 * (channels == 3) * 20, row.path
        else:
            assert difference.max() <= tolerance, row.path
        name = made.file_meta.TransferSyntaxUID.name
        compared[name] = compared.get(name, 0) + 1
    print(compared)
    assert sum(compared.values()) >= 80
    assert len(compared) >= 10


@NO_DCMTK
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize(
    ("command", "arguments", "lossless"),
    [
        ("dcmcjpeg", ["+e1"], True),
        *(("dcmcjpeg", ["+el", "+sv", str(selection)], True) for selection in range(1, 8)),
        ("dcmcjpeg", ["+ee"], False),
        ("dcmcjpeg", ["+eb"], False),
        ("dcmcjpls", ["+el"], True),
        ("dcmcjpls", ["+en", "+md", "2"], False),
        ("dcmcrle", [], True),
    ],
)
def test_what_dcmtk_compresses_we_decode_as_dcmtk_does(
    tmp_path: Path, command: str, arguments: list[str], lossless: bool, bits: int
) -> None:
    """A smooth picture with a little noise, of 8, 12 and 16 bits."""
    if arguments in (["+ee"], ["+eb"]) and bits != (12 if arguments == ["+ee"] else 8):
        pytest.skip("another number of bits than this process of JPEG has")
    y, x = np.mgrid[0:70, 0:90]
    noise = np.random.default_rng(4).integers(0, 3, (70, 90))
    smooth = (np.sin(x / 17) + np.cos(y / 11) + 2) / 4 * (2**bits - 8)
    pixels = (smooth + noise).astype("uint8" if bits == 8 else "uint16")
    plain = write(tmp_path / "plain.dcm", dataset(pixels, modality="OT", bits_stored=bits))
    packed, unpacked = tmp_path / "packed.dcm", tmp_path / "unpacked.dcm"
    subprocess.run([command, *arguments, str(plain), str(packed)], check=True, capture_output=True)
    ours, _ = stored_values(packed, wanted(1))
    made = dcmread(packed)
    assert made.file_meta.TransferSyntaxUID.is_encapsulated
    assert decoded_by_dcmtk(packed, made, unpacked)
    theirs, _ = native_values(unpacked, 0)
    if lossless:
        np.testing.assert_array_equal(ours, pixels)
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert np.abs(ours.astype(int) - theirs).max() <= (0 if command == "dcmcjpls" else 2)
        assert np.abs(ours.astype(int) - pixels.astype(int)).mean() <= 2**bits / 50


@pytest.mark.thorough
@NO_DATA
@pytest.mark.parametrize(
    "name",
    [
        "Formats/Jpeg.dcm",
        "Formats/JpegLossless.dcm",
        "Formats/Rle.dcm",
        "Encodings/Lena-ascii.dcm",
        "TransferSyntaxes/1.2.840.10008.1.2.4.51.dcm",
        "TransferSyntaxes/1.2.840.10008.1.2.4.57.dcm",
        "TransferSyntaxes/1.2.840.10008.1.2.4.90.dcm",
        "TransferSyntaxes/1.2.840.10008.1.2.4.91.dcm",
        "../pydicom-data/data_store/data/HTJ2KLossless_08_RGB.dcm",
        "../pydicom-data/data_store/data/HTJ2K_08_RGB.dcm",
    ],
)
def test_half_of_a_compressed_stream_is_no_image(tmp_path: Path, name: str) -> None:
    """A decoder that fills the rest with grey would make a wrong image, and nobody would know."""
    made = dcmread(folder() / "orthanc-odd" / name)
    stream = get_frame(made.PixelData, 0, number_of_frames=1)
    made.PixelData = encapsulate([stream[: len(stream) // 2]])
    made.save_as(tmp_path / "half.dcm")
    image = wanted(3 if made.SamplesPerPixel == 3 else 1)
    with pytest.raises(Unusable) as finding:
        stored_values(tmp_path / "half.dcm", image)
    assert finding.value.reason is Reason.UNDECODABLE


REFERENCES = [
    ("693_J2KR.dcm", "693_UNCR.dcm", 0),
    ("MR2_J2KR.dcm", "MR2_UNCR.dcm", 0),
    ("US1_J2KR.dcm", "US1_UNCR.dcm", 0),
    ("MR2_J2KI.dcm", "MR2_UNCI.dcm", 1),
    ("US1_J2KI.dcm", "US1_UNCI.dcm", 1),
    ("emri_small_jpeg_2k_lossless.dcm", "emri_small.dcm", 0),
    ("emri_small_jpeg_ls_lossless.dcm", "emri_small.dcm", 0),
    ("emri_small_RLE.dcm", "emri_small.dcm", 0),
    ("emri_small_big_endian.dcm", "emri_small.dcm", 0),
    ("liver_j2k.dcm", "liver.dcm", 0),
    ("liver_expb.dcm", "liver.dcm", 0),
    ("liver_deflate.dcm", "liver.dcm", 0),
    ("liver_nonbyte_aligned_deflate.dcm", "liver_nonbyte_aligned.dcm", 0),
    ("liver_nonbyte_aligned_j2k.dcm", "liver_nonbyte_aligned.dcm", 0),
]


@NO_DATA
@pytest.mark.parametrize(("compressed", "reference", "tolerance"), REFERENCES)
def test_a_file_has_the_values_of_the_reference_image_that_comes_with_it(
    compressed: str, reference: str, tolerance: int
) -> None:
    """JPEG 2000 above all, which Debian's dcmtk does not read."""
    data = folder() / "pydicom-data" / "data_store" / "data"
    channels = 3 if compressed.startswith("US1") else 1
    ours, _ = stored_values(data / compressed, wanted(channels))
    made = dcmread(data / reference)
    theirs, _ = native_values(data / reference, (int(made.get("NumberOfFrames") or 1) - 1) // 2)
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= tolerance


@pytest.mark.slow
def test_the_study_of_the_table_takes_every_modality_of_the_corpora() -> None:
    assert len(set(MODALITIES)) == len(MODALITIES)
