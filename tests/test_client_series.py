"""Series of DICOM files as volumes, against SimpleITK reading the same files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.values import converters

from client.dicom_file import Unusable
from client.reasons import Reason
from client.series import prepared_volume, read_series
from shared_models.study import Image

HOUNSFIELD = Image(
    modalities=("CT",),
    channels=1,
    rows=8,
    columns=8,
    intensity="hounsfield",
    window_center=40.0,
    window_width=400.0,
)
OBLIQUE = ((0.9698463, 0.0, -0.2438), (0.0436, 0.98385, 0.17344))
GRID = {"spacing": (1.0, 1.0, 1.0), "shape": (20, 26, 24)}


def directions(kind: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if kind == "axial":
        return np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    across = np.array(OBLIQUE[0]) / np.linalg.norm(OBLIQUE[0])
    down = np.array(OBLIQUE[1]) - (np.array(OBLIQUE[1]) @ across) * across
    return across, down / np.linalg.norm(down)


def stored_values(shape: tuple[int, int, int]) -> npt.NDArray[np.uint16]:
    """Smooth, in the range of a CT with intercept −1024."""
    z, y, x = np.meshgrid(*(np.linspace(0.0, 3.0, size) for size in shape), indexing="ij")
    return np.rint(1100.0 + 300.0 * np.sin(2 * z + y) * np.cos(x - z)).astype(np.uint16)


def base(storage: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = storage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.StudyInstanceUID, dataset.Modality = "p", "1.2.3", "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    return dataset


def write_series(
    folder: Path,
    *,
    kind: str = "axial",
    shape: tuple[int, int, int] = (10, 24, 20),
    spacing: tuple[float, float, float] = (2.0, 1.1, 0.9),
) -> list[Path]:
    folder.mkdir()
    across, down = directions(kind)
    series, values, paths = generate_uid(), stored_values(shape), []
    for number in range(shape[0]):
        dataset = base(CTImageStorage)
        dataset.SeriesInstanceUID = series
        dataset.Rows, dataset.Columns = shape[1:]
        dataset.PixelSpacing = [spacing[1], spacing[2]]
        dataset.ImageOrientationPatient = [f"{value:.6f}" for value in (*across, *down)]
        position = np.array([-30.0, 12.0, 40.0]) + number * spacing[0] * np.cross(across, down)
        dataset.ImagePositionPatient = [f"{value:.4f}" for value in position]
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", "-1024", "HU"
        dataset.PixelData = values[number].tobytes()
        paths.append(folder / f"{(number * 7) % shape[0]:03d}.dcm")
        dataset.save_as(paths[-1])
    return paths


def write_enhanced(path: Path) -> Path:
    """All slices in one file, not in their order."""
    shape, spacing = (10, 24, 20), (2.0, 1.1, 0.9)
    across, down = directions("oblique")
    dataset, values = base(EnhancedCTImageStorage), stored_values(shape)
    dataset.SeriesInstanceUID, dataset.NumberOfFrames = generate_uid(), shape[0]
    dataset.Rows, dataset.Columns = shape[1:]
    order = [(number * 3) % shape[0] for number in range(shape[0])]
    shared = Dataset()
    measures, turned, rescaled = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [spacing[1], spacing[2]], spacing[0]
    turned.ImageOrientationPatient = [f"{value:.6f}" for value in (*across, *down)]
    rescaled.RescaleSlope, rescaled.RescaleIntercept, rescaled.RescaleType = "1", "-1024", "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([turned])
    shared.PixelValueTransformationSequence = Items([rescaled])
    frames = []
    for number in order:
        frame, place = Dataset(), Dataset()
        position = np.array([-30.0, 12.0, 40.0]) + number * spacing[0] * np.cross(across, down)
        place.ImagePositionPatient = [f"{value:.4f}" for value in position]
        frame.PlanePositionSequence = Items([place])
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    dataset.PixelData = values[order].tobytes()
    dataset.save_as(path)
    return path


def by_simpleitk(
    folder: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> SimpleITK.Image:
    """The series as SimpleITK sorts and reads it, on the same grid."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = SimpleITK.Cast(reader.Execute(), SimpleITK.sitkFloat32)
    middle = np.array(
        image.TransformContinuousIndexToPhysicalPoint([(size - 1.0) / 2.0 for size in image.GetSize()])
    )
    backwards = np.array(spacing[::-1])
    grid = SimpleITK.Image([*shape[::-1]], SimpleITK.sitkFloat32)
    grid.SetSpacing(backwards.tolist())
    grid.SetOrigin((middle - backwards * (np.array(shape[::-1]) - 1) / 2.0).tolist())
    found = SimpleITK.Resample(image, grid, SimpleITK.Transform(), SimpleITK.sitkLinear, -5000.0)
    return SimpleITK.GetArrayFromImage(found)


def shuffled(paths: Sequence[Path]) -> list[Path]:
    return [paths[number] for number in np.random.default_rng(1).permutation(len(paths))]


@pytest.mark.parametrize("kind", ["axial", "oblique"])
def test_a_shuffled_series_is_that_of_simpleitk_in_hounsfield_units(tmp_path: Path, kind: str) -> None:
    from client.volume import resampled

    paths = write_series(tmp_path / "series", kind=kind)
    found = resampled(read_series(shuffled(paths), HOUNSFIELD), **GRID, outside=-5000.0)  # type: ignore[arg-type]
    want = by_simpleitk(tmp_path / "series", **GRID)  # type: ignore[arg-type]
    assert (want != -5000.0).mean() > 0.3
    alike = np.abs(found - want) < 0.05  # Hounsfield units, of a range of 600
    assert alike.mean() > 0.999, "but for a place that lies on the border to rounding"


def test_the_frames_of_one_file_are_the_same_volume_as_one_file_each(tmp_path: Path) -> None:
    one_each = read_series(write_series(tmp_path / "series", kind="oblique"), HOUNSFIELD)
    enhanced = read_series([write_enhanced(tmp_path / "enhanced.dcm")], HOUNSFIELD)
    assert np.array_equal(one_each.values, enhanced.values)
    assert np.allclose(one_each.origin, enhanced.origin)
    assert np.allclose(one_each.steps, enhanced.steps)


def test_levels_are_the_studys_window_and_black_around_it(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path / "series"), HOUNSFIELD)
    found = prepared_volume(volume, HOUNSFIELD, spacing=(2.0, 1.1, 0.9), shape=(10, 24, 20))
    want = np.clip((volume.values - 39.5) / 399.0 + 0.5, 0.0, 1.0)
    assert np.abs(found - want).max() < 1e-4
    assert 0.0 < want.mean() < 1.0
    wide = prepared_volume(volume, HOUNSFIELD, spacing=(2.0, 1.1, 0.9), shape=(12, 26, 22))
    assert (wide[0] == 0.0).all()
    percentiles = HOUNSFIELD.model_copy(
        update={"intensity": "percentiles", "window_center": None, "window_width": None}
    )
    spread = prepared_volume(volume, percentiles, spacing=(2.0, 1.1, 0.9), shape=(10, 24, 20))
    assert (spread.min(), spread.max()) == (0.0, 1.0)
    with pytest.raises(ValueError, match="no meaning"):
        prepared_volume(
            volume, percentiles.model_copy(update={"intensity": "window"}), spacing=(1, 1, 1), shape=(2, 2, 2)
        )


def refusal(paths: Sequence[Path]) -> Unusable:
    with pytest.raises(Unusable) as raised:
        read_series(paths, HOUNSFIELD)
    return raised.value


def test_what_makes_no_volume_is_refused_with_its_reason(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series")
    assert refusal([*paths[:4], *paths[5:]]).reason is Reason.MISSING_SLICE
    assert read_series([*paths, paths[3]], HOUNSFIELD).num_dropped == 1
    others = write_series(tmp_path / "others")
    assert "several series" in str(refusal([*paths, others[0]]))
    assert "1 slice" in str(refusal(paths[:1]))
    (tmp_path / "text.dcm").write_text("no DICOM")
    assert refusal([*paths, tmp_path / "text.dcm"]).reason is Reason.NOT_DICOM


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("ImagePositionPatient", None, Reason.NO_VOLUME),
        ("ImagePositionPatient", ["1", "2"], Reason.NO_VOLUME),
        ("ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"], Reason.BAD_ATTRIBUTE),
        ("PixelSpacing", None, Reason.NO_SPACING),
        ("RescaleType", "US", Reason.NOT_HOUNSFIELD),
        ("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], Reason.NOT_HOUNSFIELD),
    ],
)
def test_a_slice_that_does_not_say_where_it_lies_or_what_it_shows_is_refused(
    tmp_path: Path, keyword: str, value: object, reason: Reason
) -> None:
    from pydicom import dcmread

    paths = write_series(tmp_path / "series")
    dataset = dcmread(paths[2])
    if value is None:
        del dataset[keyword]
    else:
        setattr(dataset, keyword, value)
    dataset.save_as(paths[2])
    assert refusal(paths).reason is reason


def test_the_groups_of_all_frames_are_parsed_once_and_not_for_each_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2,000 frames they would be parsed 4,000,000 times."""
    path, parse, num_parsed = write_enhanced(tmp_path / "one.dcm"), converters["SQ"], 0

    def counted(*values: object, **options: object) -> object:
        nonlocal num_parsed
        num_parsed += 1
        return parse(*values, **options)  # type: ignore[operator]

    monkeypatch.setitem(converters, "SQ", counted)
    read_series([path], HOUNSFIELD)
    assert num_parsed <= 2 * 10
