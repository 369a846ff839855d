"""Masks lie on the voxels of their image, whoever wrote them and in whatever order, or are refused by name."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
from dicom_files import dataset as plane_image
from dicom_files import gradient, make_image
from PIL import Image as Pillow
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import pack_bits
from pydicom.sequence import Sequence as Items
from pydicom.uid import SegmentationStorage
from series_files import HOUNSFIELD, base, volume_image, write_series

from client.dicom_file import Unusable
from client.masks import on_voxels, plane_mask, volume_mask
from client.nifti import read_nifti
from client.reasons import Reason
from client.series import read_series
from client.volume import Volume

SHAPE = (10, 9, 7)
"""Frames of 63 bits, which begin in the middle of a byte."""
IMAGE = volume_image(depth=12, rows=14, columns=13, spacing=1.0, slice_spacing=1.0)


def drawn(shape: tuple[int, int, int] = SHAPE) -> npt.NDArray[np.float32]:
    """A shape that is another one turned or mirrored in any way."""
    inside = np.zeros(shape, dtype=np.float32)
    inside[1:4, 2:8, 1:3] = inside[3:9, 2:4, 1:3] = inside[7:9, 2:4, 3:6] = 1.0
    return inside


def volume(tmp_path: Path, kind: str) -> tuple[Volume, list[Path]]:
    paths = write_series(tmp_path / "series", kind=kind, shape=SHAPE)
    return read_series(paths, HOUNSFIELD), paths


def in_simpleitk(mask: npt.NDArray[np.float32], of: Volume, kind: str = "u1") -> SimpleITK.Image:
    """The mask with its geometry, as a program that draws masks would hold it."""
    image = SimpleITK.GetImageFromArray(mask.astype(kind))
    lengths = np.linalg.norm(of.steps, axis=0)
    image.SetSpacing([float(value) for value in lengths[::-1]])
    image.SetOrigin([float(value) for value in of.origin])
    image.SetDirection((of.steps / lengths)[:, ::-1].ravel().tolist())
    return image


# NIfTI


@pytest.mark.parametrize("kind", ["axial", "oblique"])
@pytest.mark.parametrize("order", ["LPS", "RAS", "LPI", "ASL", "SRP", "PIR"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_nifti_mask_lies_where_simpleitk_put_it_whatever_its_axes(
    tmp_path: Path, kind: str, order: str, ending: str
) -> None:
    of, _ = volume(tmp_path, kind)
    path = tmp_path / f"mask{ending}"
    SimpleITK.WriteImage(SimpleITK.DICOMOrient(in_simpleitk(drawn(), of), order), str(path))
    np.testing.assert_array_equal(on_voxels(read_nifti(path), of), drawn())


@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_each_type_of_voxel_is_read(tmp_path: Path, kind: str) -> None:
    of, _ = volume(tmp_path, "oblique")
    SimpleITK.WriteImage(in_simpleitk(drawn() * 3, of, kind), str(tmp_path / "mask.nii"))
    np.testing.assert_array_equal(on_voxels(read_nifti(tmp_path / "mask.nii"), of), drawn())


def test_the_qform_says_the_same_as_the_sform(tmp_path: Path) -> None:
    of, _ = volume(tmp_path, "oblique")
    path = tmp_path / "mask.nii"
    for order in ("LPS", "RAS", "SRP"):
        SimpleITK.WriteImage(SimpleITK.DICOMOrient(in_simpleitk(drawn(), of), order), str(path))
        content = bytearray(path.read_bytes())
        assert struct.unpack_from("<2h", content, 252) != (0, 0)
        content[254:256] = struct.pack("<h", 0)
        content[252:254] = struct.pack("<h", 1)
        path.write_bytes(content)
        np.testing.assert_array_equal(on_voxels(read_nifti(path), of), drawn())


def test_a_prepared_mask_is_the_nearest_voxel_as_simpleitk_takes_it(tmp_path: Path) -> None:
    of, _ = volume(tmp_path, "oblique")
    mask = in_simpleitk(drawn(), of)
    SimpleITK.WriteImage(mask, str(tmp_path / "mask.nii.gz"))
    found = volume_mask(tmp_path / "mask.nii.gz", of, IMAGE)
    grid = SimpleITK.Image(13, 14, 12, SimpleITK.sitkUInt8)
    half = (np.array([13, 14, 12]) - 1) / 2.0
    grid.SetOrigin((of.middle - half).tolist())
    want = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(mask, grid, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0.0)
    )
    assert found.shape == (1, 12, 14, 13)
    assert found.dtype == np.uint8
    assert want.sum() > 50
    assert (found[0] == want).mean() > 0.998, "but for a place half way between two voxels"


def test_an_empty_mask_is_a_mask(tmp_path: Path) -> None:
    of, _ = volume(tmp_path, "axial")
    SimpleITK.WriteImage(in_simpleitk(0.0 * drawn(), of), str(tmp_path / "mask.nii"))
    assert not volume_mask(tmp_path / "mask.nii", of, IMAGE).any()


def moved(image: SimpleITK.Image) -> SimpleITK.Image:
    image.SetOrigin((np.array(image.GetOrigin()) + np.array([0.5, 0.0, 0.0])).tolist())
    return image


def mirrored(image: SimpleITK.Image) -> SimpleITK.Image:
    """The same numbers, and a header that says they run the other way: NIfTI that lost its directions."""
    image.SetDirection([-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0])
    return image


def cut(image: SimpleITK.Image) -> SimpleITK.Image:
    return image[:, :, 1:]


def stretched(image: SimpleITK.Image) -> SimpleITK.Image:
    image.SetSpacing((np.array(image.GetSpacing()) * 1.1).tolist())
    return image


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (moved, Reason.MASK_ELSEWHERE),
        (mirrored, Reason.MASK_ELSEWHERE),
        (stretched, Reason.MASK_ELSEWHERE),
        (cut, Reason.MASK_OTHER_SIZE),
    ],
)
def test_a_mask_of_another_place_or_size_is_refused(
    tmp_path: Path, harm: Callable[[SimpleITK.Image], SimpleITK.Image], problem: Reason
) -> None:
    of, _ = volume(tmp_path, "axial")
    SimpleITK.WriteImage(harm(in_simpleitk(drawn(), of)), str(tmp_path / "mask.nii"))
    with pytest.raises(Unusable) as found:
        volume_mask(tmp_path / "mask.nii", of, IMAGE)
    assert found.value.reason is problem


def put(content: bytes, form: str, at: int, *values: object) -> bytes:
    changed = bytearray(content)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda content: content[:200], Reason.MASK_UNREADABLE),
        (lambda content: content[:-1], Reason.MASK_UNREADABLE),
        (lambda content: b"", Reason.MASK_UNREADABLE),
        (lambda content: put(content, "4s", 344, b"ni1\0"), Reason.MASK_UNSUPPORTED),
        (lambda content: put(content, "<i", 0, 540), Reason.MASK_UNREADABLE),
        (lambda content: put(content, "<h", 40, 4) [:48] + put(content, "<h", 48, 2)[48:], Reason.MASK_UNSUPPORTED),
        (lambda content: put(content, "<4h", 40, 3, 30000, 30000, 30000), Reason.MASK_TOO_LARGE),
        (lambda content: put(content, "<4h", 40, 3, -1, 9, 10), Reason.MASK_UNREADABLE),
        (lambda content: put(content, "<h", 70, 128), Reason.MASK_UNSUPPORTED),
        (lambda content: put(content, "<f", 108, float("nan")), Reason.MASK_UNREADABLE),
        (lambda content: put(content, "<f", 108, 1e12), Reason.MASK_UNREADABLE),
        (lambda content: put(content, "<2h", 252, 0, 0), Reason.MASK_ELSEWHERE),
        (lambda content: put(content, "<12f", 280, *[float("inf")] * 12), Reason.MASK_ELSEWHERE),
        (lambda content: put(content, "<12f", 280, *[0.0] * 12), Reason.MASK_ELSEWHERE),
        (lambda content: gzip.compress(content)[:-30], Reason.MASK_UNREADABLE),
        (lambda content: b"\x1f\x8b" + bytes(100), Reason.MASK_UNREADABLE),
    ],
)  # fmt: skip
def test_a_broken_or_hostile_nifti_has_a_named_problem(
    tmp_path: Path, harm: Callable[[bytes], bytes], problem: Reason
) -> None:
    of, _ = volume(tmp_path, "axial")
    path = tmp_path / "mask.nii"
    SimpleITK.WriteImage(in_simpleitk(drawn(), of), str(path))
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(Unusable) as found:
        volume_mask(path, of, IMAGE)
    assert found.value.reason is problem, found.value


def test_no_more_of_a_bomb_is_inflated_than_the_header_claims(tmp_path: Path) -> None:
    of, _ = volume(tmp_path, "axial")
    path = tmp_path / "mask.nii"
    SimpleITK.WriteImage(in_simpleitk(drawn(), of), str(path))
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(path.read_bytes() + bytes(2**27), 1))
    np.testing.assert_array_equal(on_voxels(read_nifti(tmp_path / "bomb.nii.gz"), of), drawn())


# DICOM SEG


def write_seg(
    path: Path,
    mask: npt.NDArray[np.float32],
    paths: list[Path],
    *,
    kind: str = "BINARY",
    segments: int = 1,
    numbered: bool = False,
) -> Path:
    """Frames from the head to the feet, those without anything left out; a second segment has the upper rows.

    Where they are *numbered*, each frame says of which segment it is.
    """
    made = base(SegmentationStorage, patient="PAT-0001", study="1", series="seg", image="1")
    made.Modality, made.SegmentationType = "SEG", kind
    made.Rows, made.Columns = mask.shape[1:]
    frames, planes = [], []
    for number in reversed(range(len(mask))):
        of = dcmread(paths[number])
        for segment in range(1, segments + 1):
            rows = slice(0, 3) if segment == 2 else slice(3, None) if segments == 2 else slice(None)
            plane = np.zeros(mask.shape[1:])
            plane[rows] = mask[number][rows]
            if not plane.any():
                continue
            frame, place, turned, derived, source = (Dataset() for _ in range(5))
            place.ImagePositionPatient = of.ImagePositionPatient
            turned.ImageOrientationPatient = of.ImageOrientationPatient
            source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = of.SOPClassUID, of.SOPInstanceUID
            derived.SourceImageSequence = Items([source])
            frame.PlanePositionSequence, frame.PlaneOrientationSequence = Items([place]), Items([turned])
            frame.DerivationImageSequence = Items([derived])
            if numbered:
                identification = Dataset()
                identification.ReferencedSegmentNumber = segment
                frame.SegmentIdentificationSequence = Items([identification])
            frames.append(frame)
            planes.append(plane)
    made.NumberOfFrames, made.PerFrameFunctionalGroupsSequence = len(frames), Items(frames)
    stack = np.stack(planes)
    if kind == "BINARY":
        made.BitsAllocated = made.BitsStored = 1
        made.HighBit = 0
        made.PixelData = pack_bits(stack.astype(np.uint8))
    else:
        made.BitsAllocated = made.BitsStored = 8
        made.HighBit, made.MaximumFractionalValue = 7, 200
        made.PixelData = (stack * 150 + 40 * (stack == 0)).astype(np.uint8).tobytes() + b"\0" * (
            stack.size % 2
        )
    made["PixelData"].VR = "OB"
    made.save_as(path)
    return path


def uids(paths: list[Path]) -> set[str]:
    return {str(dcmread(path).SOPInstanceUID) for path in paths}


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("lying", ["axial", "oblique"])
def test_frames_of_a_seg_go_to_the_slices_on_which_they_lie(
    tmp_path: Path, kind: str, segments: int, lying: str
) -> None:
    of, paths = volume(tmp_path, lying)
    path = write_seg(tmp_path / "seg.dcm", drawn(), paths, kind=kind, segments=segments)
    SimpleITK.WriteImage(in_simpleitk(drawn(), of), str(tmp_path / "mask.nii"))
    want = volume_mask(tmp_path / "mask.nii", of, IMAGE)
    assert want.any()
    np.testing.assert_array_equal(volume_mask(path, of, IMAGE, instances=uids(paths)), want)


def seg_changed(path: Path, change: Callable[[Dataset], None]) -> None:
    made = dcmread(path)
    change(made)
    made.save_as(path)


def first_frame(made: Dataset) -> Dataset:
    frame: Dataset = made.PerFrameFunctionalGroupsSequence[0]
    return frame


def lies_beside(made: Dataset) -> None:
    place = first_frame(made).PlanePositionSequence[0]
    place.ImagePositionPatient = [value + 0.6 for value in place.ImagePositionPatient]


def lies_beyond(made: Dataset) -> None:
    place = first_frame(made).PlanePositionSequence[0]
    place.ImagePositionPatient = [*place.ImagePositionPatient[:2], place.ImagePositionPatient[2] + 20.0]


def lies_nowhere(made: Dataset) -> None:
    del first_frame(made).PlanePositionSequence


def lies_turned(made: Dataset) -> None:
    first_frame(made).PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]


def of_a_stranger(made: Dataset) -> None:
    source = first_frame(made).DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedSOPInstanceUID = "1.2.3.4"


def of_another_size(made: Dataset) -> None:
    made.Columns = 6


def of_no_kind(made: Dataset) -> None:
    made.SegmentationType = "LABELMAP"


def without_pixels(made: Dataset) -> None:
    del made.PixelData


def with_too_many_frames(made: Dataset) -> None:
    made.NumberOfFrames = 100_000


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lies_beside, Reason.MASK_ELSEWHERE),
        (lies_beyond, Reason.MASK_ELSEWHERE),
        (lies_nowhere, Reason.MASK_ELSEWHERE),
        (lies_turned, Reason.MASK_ELSEWHERE),
        (of_a_stranger, Reason.MASK_OF_ANOTHER_IMAGE),
        (of_another_size, Reason.MASK_OTHER_SIZE),
        (of_no_kind, Reason.MASK_UNSUPPORTED),
        (without_pixels, Reason.MASK_UNREADABLE),
        (with_too_many_frames, Reason.MASK_UNREADABLE),
    ],
)
def test_a_seg_that_does_not_fit_has_a_named_problem(
    tmp_path: Path, change: Callable[[Dataset], None], problem: Reason
) -> None:
    of, paths = volume(tmp_path, "axial")
    path = write_seg(tmp_path / "seg.dcm", drawn(), paths)
    seg_changed(path, change)
    with pytest.raises(Unusable) as found:
        volume_mask(path, of, IMAGE, instances=uids(paths))
    assert found.value.reason is problem, found.value


def test_another_file_than_a_seg_is_unreadable(tmp_path: Path) -> None:
    of, paths = volume(tmp_path, "axial")
    (tmp_path / "text").write_text("no mask")
    for path in (paths[0], tmp_path / "text", tmp_path / "nothing"):
        with pytest.raises(Unusable) as found:
            volume_mask(path, of, IMAGE, instances=uids(paths))
        assert found.value.reason is Reason.MASK_UNREADABLE


# Plane images


def corner(rows: int = 12, columns: int = 20) -> npt.NDArray[np.uint8]:
    inside = np.zeros((rows, columns), dtype=np.uint8)
    inside[:4, :5] = 255
    return inside


def test_a_png_is_padded_cut_and_turned_as_its_image(tmp_path: Path) -> None:
    header = plane_image(gradient(12, 20), PatientOrientation=["R", "F"])
    Pillow.fromarray(corner()).save(tmp_path / "mask.png")
    padded = plane_mask(tmp_path / "mask.png", header, make_image(rows=20, columns=20))
    assert padded.shape == (1, 20, 20)
    assert padded.dtype == np.uint8
    np.testing.assert_array_equal(padded[0, 4:8, :5], 1)
    assert padded.sum() == 20
    turned = plane_mask(
        tmp_path / "mask.png", header, make_image(rows=20, columns=20, orientation="standard")
    )
    np.testing.assert_array_equal(turned, padded[:, :, ::-1])
    half = plane_mask(tmp_path / "mask.png", header, make_image(rows=12, columns=10, aspect="crop"))
    assert half.sum() == 0, "the corner was cut off"


def test_a_seg_of_a_plane_image_is_found_by_the_number_of_the_image(tmp_path: Path) -> None:
    _, paths = volume(tmp_path, "axial")
    path = write_seg(tmp_path / "seg.dcm", drawn()[:1] + 1.0, paths[:1])
    image = make_image(rows=9, columns=8, aspect="stretch", modalities=("CT",))
    assert plane_mask(path, dcmread(paths[0]), image).sum() == 9 * 8
    with pytest.raises(Unusable) as refused:
        plane_mask(path, dcmread(paths[1]), image)
    assert refused.value.reason is Reason.MASK_OF_ANOTHER_IMAGE


def test_a_png_that_does_not_fit_has_a_named_problem(tmp_path: Path) -> None:
    header, image = plane_image(gradient(12, 20)), make_image()
    path = tmp_path / "mask.png"
    cases: list[tuple[Callable[[], object], Reason]] = [
        (lambda: Pillow.fromarray(corner(11)).save(path), Reason.MASK_OTHER_SIZE),
        (lambda: Pillow.fromarray(np.zeros((12, 20, 3), dtype=np.uint8)).save(path), Reason.MASK_UNSUPPORTED),
        (lambda: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20)), Reason.MASK_UNREADABLE),
        (lambda: Pillow.fromarray(corner()).save(path, "BMP"), Reason.MASK_UNREADABLE),
        (path.unlink, Reason.MASK_UNREADABLE),
    ]
    for make, problem in cases:
        make()
        with pytest.raises(Unusable) as found:
            plane_mask(path, header, image)
        assert found.value.reason is problem, found.value
