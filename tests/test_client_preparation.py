"""One image as the model sees it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_files import dataset, gradient, jpeg_dataset, make_image, write
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import RLELossless

from client.dicom_file import Unusable
from client.dicom_image import read_image
from client.preparation import fit, prepare
from client.reasons import Reason
from shared_models.study import Image

COLOUR = make_image(modalities=("XC",), channels=3)


def prepared(tmp_path: Path, made: Dataset, image: Image) -> np.ndarray:
    return prepare(read_image(write(tmp_path / "one.dcm", made), image), image)


def test_a_grey_image_of_the_right_size_keeps_its_values(tmp_path: Path) -> None:
    found = prepared(tmp_path, dataset(gradient()), make_image())
    assert found.dtype == np.float32
    assert found.shape == (1, 16, 16)
    np.testing.assert_array_equal(found[0], (gradient() / 255.0).astype(np.float32))


@pytest.mark.parametrize(
    ("height", "width"), [(40, 20), (20, 40), (30, 30), (31, 17), (400, 9), (1, 1), (3, 1000)]
)
@pytest.mark.parametrize("aspect", ["pad", "crop", "stretch"])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (8, 24), (24, 8)])
def test_every_shape_comes_out_as_the_study_says(
    height: int, width: int, aspect: str, rows: int, columns: int
) -> None:
    plane = np.full((height, width), 0.5, dtype=np.float32)
    found = fit(plane, make_image(rows=rows, columns=columns, aspect=aspect))
    assert found.shape == (rows, columns)
    assert found.dtype == np.float32
    filled = found != 0
    if aspect == "pad":
        assert filled.any(axis=1).all() or filled.any(axis=0).all()
    else:
        assert filled.all()


def test_padding_keeps_the_aspect_and_lies_on_both_sides() -> None:
    found = fit(np.ones((40, 20), dtype=np.float32), make_image())
    assert (found[:, 4:12] == 1).all()
    assert (found[:, :4] == 0).all()
    assert (found[:, 12:] == 0).all()


def test_cropping_takes_the_centre() -> None:
    plane = np.zeros((16, 48), dtype=np.float32)
    plane[:, 16:32] = 1.0
    assert (fit(plane, make_image(aspect="crop")) == 1).all()


def test_shrinking_is_antialiased() -> None:
    """A checkerboard finer than the result becomes even grey; without a filter it would alias."""
    board = (np.indices((256, 256)).sum(axis=0) % 2).astype(np.float32)
    np.testing.assert_allclose(fit(board, make_image())[2:-2, 2:-2], 0.5, atol=1e-3)


@given(
    st.integers(1, 60), st.integers(1, 60), st.sampled_from(["pad", "crop", "stretch"]), st.integers(0, 2**32)
)
def test_resizing_stays_in_range_and_gives_the_same_bits_again(
    height: int, width: int, aspect: str, seed: int
) -> None:
    plane = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    image = make_image(aspect=aspect)
    found = fit(plane, image)
    assert found.min() >= 0.0
    assert found.max() <= plane.max() + 1e-6
    np.testing.assert_array_equal(found, fit(plane.copy(), image))


def test_the_number_of_threads_does_not_change_a_bit(tmp_path: Path) -> None:
    made = dataset(np.random.default_rng(3).integers(0, 4096, (200, 150)).astype("uint16"), bits_stored=12)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(prepared(tmp_path, made, make_image(intensity="percentiles")))
    torch.set_num_threads(before)
    np.testing.assert_array_equal(*results)


def test_rgb_is_scaled_by_its_bits(tmp_path: Path) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (16, 16, 3)).astype("uint8")
    found = prepared(tmp_path, dataset(pixels, photometric="RGB", modality="XC"), COLOUR)
    np.testing.assert_array_equal(found, (np.moveaxis(pixels, -1, 0) / 255.0).astype(np.float32))


def test_ybr_becomes_rgb(tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(40, 200, (16, 16, 3)).astype("uint8")
    ybr = convert_color_space(pixels, "RGB", "YBR_FULL")
    found = prepared(tmp_path, dataset(ybr, photometric="YBR_FULL", modality="XC"), COLOUR)
    np.testing.assert_allclose(found, np.moveaxis(pixels, -1, 0) / 255.0, atol=2.5 / 255)


def test_a_jpeg_photograph_becomes_rgb(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), dtype="uint8")
    pixels[..., 0], pixels[..., 1] = 200, 60
    found = prepared(tmp_path, jpeg_dataset(pixels), COLOUR)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), [200 / 255, 60 / 255, 0], atol=0.01)


def test_palette_colour_becomes_rgb(tmp_path: Path) -> None:
    pixels = (np.arange(256, dtype="uint8") % 4).reshape(16, 16)
    made = dataset(pixels, photometric="PALETTE COLOR", modality="XC")
    tables = {"Red": [0, 65535, 0, 0], "Green": [0, 0, 65535, 0], "Blue": [0, 0, 0, 65535]}
    for colour, entries in tables.items():
        made.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [4, 0, 16])
        made.add_new(f"{colour}PaletteColorLookupTableData", "OW", np.asarray(entries, dtype="<u2").tobytes())
    found = prepared(tmp_path, made, COLOUR)
    expected = np.stack([(pixels == 1), (pixels == 2), (pixels == 3)]).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


def test_run_length_compression_changes_nothing(tmp_path: Path) -> None:
    made = dataset(gradient(dtype="uint16", high=4095), bits_stored=12)
    plain = prepared(tmp_path, made, make_image())
    made.compress(RLELossless, encoding_plugin="pydicom")
    np.testing.assert_array_equal(prepared(tmp_path, made, make_image()), plain)


def test_overlay_bits_above_bits_stored_are_not_part_of_the_image(tmp_path: Path) -> None:
    pixels = gradient(dtype="uint16", high=4095)
    plain = prepared(tmp_path, dataset(pixels, bits_stored=12), make_image())
    overlaid = prepared(tmp_path, dataset(pixels | np.uint16(0xF000), bits_stored=12), make_image())
    np.testing.assert_array_equal(overlaid, plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attributes",
    [
        {"RescaleSlope": 1e308, "RescaleIntercept": 1e308},
        {"RescaleSlope": 1e308, "RescaleIntercept": 0, "WindowCenter": 0, "WindowWidth": 1e308},
    ],
)
@pytest.mark.parametrize("intensity", ["window", "full-range", "percentiles"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_values_that_overflow_are_refused_or_finite(
    tmp_path: Path, attributes: dict[str, float], intensity: str
) -> None:
    try:
        found = prepared(tmp_path, dataset(gradient(), **attributes), make_image(intensity=intensity))
    except Unusable as finding:
        assert finding.reason is Reason.BAD_ATTRIBUTE
    else:
        assert np.isfinite(found).all()
