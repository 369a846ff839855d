"""Small CT series made in code, hospitals that have some, and what SimpleITK reads of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK
from dicom_files import NAME, Hospital, make_study, uid
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

from shared_models.study import Image, Model, Study

HOUNSFIELD = Image(
    modalities=("CT",),
    channels=1,
    rows=8,
    columns=8,
    intensity="hounsfield",
    window_center=40.0,
    window_width=400.0,
)
SHAPE, SPACING = (10, 24, 20), (2.0, 1.1, 0.9)
OBLIQUE = ((0.9698463, 0.0, -0.2438), (0.0436, 0.98385, 0.17344))


def volume_image(**changes: object) -> Image:
    """What the test study wants of a volume: 8 × 16 × 16 voxels in the study's window."""
    values: dict[str, object] = {
        "modalities": ("CT",),
        "channels": 1,
        "rows": 16,
        "columns": 16,
        "depth": 8,
        "spacing": 1.5,
        "slice_spacing": 2.5,
        "intensity": "hounsfield",
        "window_center": 40.0,
        "window_width": 800.0,
    }
    return Image.model_validate({**values, **changes})


def volume_study(image: Image | None = None, **changes: object) -> Study:
    """A small study of volumes without privacy."""
    study = make_study()
    parts = {
        **study.model_dump(),
        "image": (image or volume_image()).model_dump(),
        "model": Model(architecture="small-cnn-3d", width=8).model_dump(),
    }
    return Study.model_validate({**parts, **changes})


def directions(kind: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The directions in which columns and rows count up."""
    if kind == "axial":
        return np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    across = np.array(OBLIQUE[0]) / np.linalg.norm(OBLIQUE[0])
    down = np.array(OBLIQUE[1]) - (np.array(OBLIQUE[1]) @ across) * across
    return across, down / np.linalg.norm(down)


def stored_values(shape: tuple[int, int, int], high: float = 300.0) -> npt.NDArray[np.uint16]:
    """Smooth, in the range of a CT with intercept −1024."""
    z, y, x = np.meshgrid(*(np.linspace(0.0, 3.0, size) for size in shape), indexing="ij")
    return np.rint(1100.0 + high * np.sin(2 * z + y) * np.cos(x - z)).astype(np.uint16)


def base(storage: str, *, patient: str, study: str, series: str, image: str) -> FileDataset:
    """A CT without geometry and pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = storage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = uid(patient, study, series, image)
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.PatientName, dataset.Modality = patient, NAME, "CT"
    dataset.StudyInstanceUID = uid(patient, study)
    dataset.SeriesInstanceUID = uid(patient, study, series)
    dataset.AccessionNumber = f"ACC-{patient}-{study}"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    return dataset


def write_series(
    folder: Path,
    *,
    kind: str = "axial",
    shape: tuple[int, int, int] = SHAPE,
    spacing: tuple[float, float, float] = SPACING,
    patient: str = "PAT-0001",
    study: str = "1",
    series: str = "1",
    high: float = 300.0,
) -> list[Path]:
    """One file a slice, whose names are not in the order of the slices; returned from the feet to the head."""
    folder.mkdir(parents=True, exist_ok=True)
    across, down = directions(kind)
    values, paths = stored_values(shape, high), []
    for number in range(shape[0]):
        dataset = base(CTImageStorage, patient=patient, study=study, series=series, image=str(number))
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


def write_enhanced(
    path: Path, *, kind: str = "oblique", patient: str = "PAT-0001", high: float = 300.0
) -> Path:
    """All slices in one file, not in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    across, down = directions(kind)
    dataset = base(EnhancedCTImageStorage, patient=patient, study="1", series="1", image="1")
    values, dataset.NumberOfFrames = stored_values(SHAPE, high), SHAPE[0]
    dataset.Rows, dataset.Columns = SHAPE[1:]
    order = [(number * 3) % SHAPE[0] for number in range(SHAPE[0])]
    shared = Dataset()
    measures, turned, rescaled = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[2]], SPACING[0]
    turned.ImageOrientationPatient = [f"{value:.6f}" for value in (*across, *down)]
    rescaled.RescaleSlope, rescaled.RescaleIntercept, rescaled.RescaleType = "1", "-1024", "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([turned])
    shared.PixelValueTransformationSequence = Items([rescaled])
    frames = []
    for number in order:
        frame, place = Dataset(), Dataset()
        position = np.array([-30.0, 12.0, 40.0]) + number * SPACING[0] * np.cross(across, down)
        place.ImagePositionPatient = [f"{value:.4f}" for value in position]
        frame.PlanePositionSequence = Items([place])
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    dataset.PixelData = values[order].tobytes()
    dataset.save_as(path)
    return path


def changed(path: Path, **attributes: object) -> None:
    """Write a file again with other attributes; None removes one."""
    dataset = dcmread(path)
    for keyword, value in attributes.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)


def shuffled(paths: Sequence[Path]) -> list[Path]:
    """The same in another order."""
    return [paths[number] for number in np.random.default_rng(1).permutation(len(paths))]


def by_simpleitk(
    files: Sequence[Path], shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> npt.NDArray[np.float32]:
    """A series as SimpleITK sorts and reads it, on a grid along the patient's axes around its middle."""
    reader = SimpleITK.ImageSeriesReader()
    (folder,) = {path.parent for path in files}
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


def volume_hospital(root: Path, *, num_patients: int = 5) -> Hospital:
    """A series a patient, oblique and of several frames among them; the second has a gap, the third a broken slice."""
    hospital, rows = Hospital(root), []
    for number in range(num_patients):
        patient, folder = f"PAT-{number:04d}", hospital.images / f"{number % 3}" / f"{number:04d}"
        if number == 3:
            write_enhanced(folder / "all.dcm", patient=patient, high=100.0 + 20.0 * number)
        else:
            kind = "oblique" if number % 2 else "axial"
            paths = write_series(folder, kind=kind, patient=patient, high=100.0 + 20.0 * number)
            if number == 1:
                paths[4].unlink()
            elif number == 2:
                paths[2].write_bytes(paths[2].read_bytes()[:-400])
        rows.append((patient, "yes" if number % 2 else "no"))
    (hospital.images / "notes.txt").write_text("nothing")
    write_series(hospital.images / "unlabelled", patient="PAT-9999", shape=(3, 8, 8))
    hospital.label(rows)
    return hospital
