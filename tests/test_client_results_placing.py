"""Masks on the pixels of their source: what preparation does to an image, done backwards."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from dicom_files import dataset, make_image
from dicom_files import write as write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.dataset import FileDataset
from pydicom.filebase import DicomBytesIO
from readings import SOURCES, volume_image

from client.dicom_file import Unusable
from client.prediction.dicom_results.placing import on_plane, on_slices
from client.prediction.dicom_results.source_images import read_source, slices_of
from client.preparation import prepare
from client.series import read_series
from client.volume import Slice, nearest, stacked
from shared_models.study import Image

Mask = npt.NDArray[np.uint8]
ORIENTATIONS = ("L\\F", "F\\L", "R\\F", "L\\H", "R\\H", "H\\R", "F\\R", "H\\L", "P\\F", "A\\H", "F\\A", "")


def ellipse(shape: tuple[int, ...], share: float = 0.6) -> Mask:
    """In the middle, so large a share of each side; not symmetric, so that a mirrored one differs."""
    axes = np.meshgrid(*(np.linspace(-1.0, 1.0, size) for size in shape), indexing="ij")
    inside = sum((axis / share) ** 2 for axis in axes) <= 1.0
    bitten = np.logical_and.reduce([axis < 0.0 for axis in axes])
    return (inside & ~bitten).astype(np.uint8)


def dice(one: Mask, other: Mask) -> float:
    return float(2.0 * (one & other).sum() / max(1, one.sum() + other.sum()))


def header_of(pixels: Mask, **attributes: object) -> FileDataset:
    """An image that shows a mask, as it is read from a file."""
    made = dataset(pixels * np.uint8(255), **{name: value for name, value in attributes.items() if value})
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    buffer = DicomBytesIO()
    dcmwrite(buffer, made, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)


@given(
    rows=st.integers(57, 91),
    columns=st.integers(57, 91),
    aspect=st.sampled_from(["pad", "crop", "stretch"]),
    orientation=st.sampled_from(ORIENTATIONS),
    pixel=st.sampled_from([None, (1.0, 1.0), (1.2, 1.0), (0.9, 1.1)]),
    standard=st.booleans(),
    grid=st.tuples(st.integers(64, 80), st.integers(64, 80)),
)
@settings(max_examples=60, deadline=None)
def test_a_mask_that_was_prepared_as_an_image_comes_back_where_it_was(
    rows: int,
    columns: int,
    aspect: str,
    orientation: str,
    pixel: tuple[float, float] | None,
    standard: bool,
    grid: tuple[int, int],
) -> None:
    drawn = ellipse((rows, columns))
    header = header_of(
        drawn, PatientOrientation=orientation, PixelSpacing=None if pixel is None else list(pixel)
    )
    image = make_image(
        rows=grid[0],
        columns=grid[1],
        aspect=aspect,
        orientation="standard" if standard else "as-stored",
    )
    prepared = prepare(header, image)[0]
    back = on_plane((prepared >= 0.5).astype(np.uint8), header, image)
    assert back.shape == drawn.shape
    assert dice(back, drawn) >= 0.95


@given(
    rows=st.integers(50, 99),
    columns=st.integers(50, 99),
    spacing=st.sampled_from([(1.0, 1.0), (0.8, 0.8), (1.3, 1.3), (1.1, 0.9)]),
    orientation=st.sampled_from(ORIENTATIONS),
)
@settings(max_examples=60, deadline=None)
def test_so_does_one_that_was_brought_to_the_studys_size_of_pixels(
    rows: int, columns: int, spacing: tuple[float, float], orientation: str
) -> None:
    drawn = ellipse((rows, columns), share=0.75)
    header = header_of(drawn, PatientOrientation=orientation, PixelSpacing=list(spacing))
    image = make_image(rows=72, columns=72, spacing=1.0, orientation="standard")
    prepared = prepare(header, image)[0]
    back = on_plane((prepared >= 0.5).astype(np.uint8), header, image)
    seen = on_plane(np.ones((72, 72), dtype=np.uint8), header, image)
    assert dice(back, drawn & seen) >= 0.95


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_image_of_the_grids_size_gets_each_pixel_back(orientation: str) -> None:
    values = np.random.default_rng(1).integers(0, 2, (64, 64), dtype=np.uint8)
    header = header_of(values, PatientOrientation=orientation)
    image = make_image(rows=64, columns=64, orientation="standard")
    prepared = (prepare(header, image)[0] >= 0.5).astype(np.uint8)
    assert np.array_equal(on_plane(prepared, header, image), values)


def test_what_was_cropped_away_is_not_marked() -> None:
    header = header_of(np.zeros((40, 101), dtype=np.uint8))
    image = make_image(rows=32, columns=32, aspect="crop")
    back = on_plane(np.ones((32, 32), dtype=np.uint8), header, image)
    assert back[:, 30:70].all()
    assert not back[:, :30].any()
    assert not back[:, 70:].any()


def test_what_lies_beyond_the_studys_millimetres_is_not_marked() -> None:
    header = header_of(np.zeros((40, 80), dtype=np.uint8), PixelSpacing=[1.0, 1.0])
    image = make_image(rows=20, columns=20, spacing=1.0)
    back = on_plane(np.ones((20, 20), dtype=np.uint8), header, image)
    assert back.sum() == 400
    assert back[10:30, 30:50].all()


def test_padding_that_the_model_marked_is_left_out() -> None:
    header = header_of(np.zeros((16, 32), dtype=np.uint8))
    image = make_image(rows=32, columns=32, aspect="pad")
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:8] = 1
    assert not on_plane(mask, header, image).any()


def rotated(angles: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    """A rotation about the three axes, one after the other."""
    turned = np.eye(3)
    for axis, angle in enumerate(angles):
        cosine, sine = np.cos(angle), np.sin(angle)
        one = np.eye(3)
        others = [other for other in range(3) if other != axis]
        one[np.ix_(others, others)] = [[cosine, -sine], [sine, cosine]]
        turned = turned @ one
    return turned


def slices_with(
    values: npt.NDArray[np.float32],
    turned: npt.NDArray[np.float64],
    spacing: tuple[float, float, float],
    shear: float = 0.0,
) -> list[Slice]:
    across, down, onwards = turned[:, 0], turned[:, 1], turned[:, 2] + shear * turned[:, 1]
    return [
        Slice(
            values=plane,
            position=np.array([5.0, -20.0, 300.0]) + number * spacing[0] * onwards,
            across=across,
            down=down,
            spacing=spacing[1:],
        )
        for number, plane in enumerate(values)
    ]


@pytest.mark.slow
@given(
    shape=st.tuples(st.integers(30, 43), st.integers(30, 43), st.integers(30, 43)),
    spacing=st.tuples(st.floats(0.9, 1.4), st.floats(0.8, 1.2), st.floats(0.8, 1.2)),
    angles=st.tuples(*[st.floats(-0.6, 0.6)] * 3),
    shear=st.sampled_from([0.0, 0.2, -0.2]),
    backwards=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_a_volumes_mask_comes_back_onto_its_slices(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    angles: tuple[float, float, float],
    shear: float,
    backwards: bool,
) -> None:
    drawn = ellipse(shape, share=0.65)
    slices = slices_with(drawn.astype(np.float32), rotated(angles), spacing, shear)
    if backwards:
        slices, drawn = slices[::-1], drawn[::-1]
    image = volume_image(depth=56, rows=56, columns=56, spacing=1.0, slice_spacing=1.0)
    grid = nearest(stacked(slices), spacing=(1.0, 1.0, 1.0), shape=(56, 56, 56), outside=0.0)
    back = on_slices(grid.astype(np.uint8), slices, shape[1:], image)
    assert back.shape == drawn.shape
    assert dice(back, drawn) >= 0.93


def test_a_volume_on_the_grid_itself_gets_each_voxel_back() -> None:
    values = np.random.default_rng(2).integers(0, 3, (16, 12, 10), dtype=np.uint8)
    slices = slices_with(values.astype(np.float32), np.eye(3), (2.0, 1.0, 1.0))
    image = volume_image(depth=16, rows=12, columns=10, spacing=1.0, slice_spacing=2.0)
    grid = nearest(stacked(slices), spacing=(2.0, 1.0, 1.0), shape=(16, 12, 10), outside=0.0)
    assert np.array_equal(on_slices(grid.astype(np.uint8), slices, (12, 10), image), values)


def test_beyond_the_grid_nothing_is_marked_and_half_a_voxel_around_it_belongs_to_it() -> None:
    slices = slices_with(np.zeros((20, 21, 22), dtype=np.float32), np.eye(3), (1.0, 1.0, 1.0))
    image = volume_image(depth=8, rows=8, columns=8, spacing=1.0, slice_spacing=1.0)
    back = on_slices(np.ones((8, 8, 8), dtype=np.uint8), slices, (21, 22), image)
    assert [int(back.any(axis=axes).sum()) for axes in ((1, 2), (0, 2), (0, 1))] == [8, 8, 8]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["series", "oblique-series", "enhanced-series"])
def test_where_slices_lie_is_read_from_headers_alone(name: str, tmp_path: Path) -> None:
    files = SOURCES[name].make(tmp_path)
    image = volume_image()
    by_header = slices_of([read_source(path) for path in files])
    stacked_by_header = stacked(by_header)
    volume = read_series(files, image)
    assert len(by_header) == len(volume.values)
    assert np.allclose(stacked_by_header.origin, volume.origin, atol=1e-9)
    assert np.allclose(stacked_by_header.steps, volume.steps, atol=1e-9)


def test_slices_without_a_place_are_told(tmp_path: Path) -> None:
    made = dataset(np.zeros((16, 16), dtype=np.uint8), PixelSpacing=[1.0, 1.0])
    source = read_source(write_dicom(tmp_path / "one.dcm", made))
    with pytest.raises(Unusable, match="ImageOrientationPatient"):
        slices_of([source])


@pytest.mark.slow
def test_the_study_must_be_of_volumes() -> None:
    image = Image.model_validate(make_image().model_dump())
    with pytest.raises(ValueError, match="no volumes"):
        on_slices(np.ones((8, 8, 8), dtype=np.uint8), [], (8, 8), image)
