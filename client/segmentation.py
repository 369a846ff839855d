"""Reading a mask from DICOM SEG: its frames, by where they lie or by the image that they were drawn on.

Source: DICOM PS3.3 sections C.8.20.2 (Segmentation Image Module), C.7.6.16.2 (functional groups).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset
from pydicom.multival import MultiValue

from client.decoders import is_native
from client.dicom_file import (
    FRAME_KEYWORDS,
    MAX_INFLATED_BYTES,
    Unusable,
    code_of,
    guarded,
    integer_of,
    opened,
    read_header,
    uid_of,
)
from client.dicom_image import check_image, decode, with_pixels
from client.frames import num_frames
from client.reasons import Reason
from client.structures import WHOLE, Classes, MaskValues, structure_of
from client.volume import Volume
from shared_models.study import Image

MAX_FRAMES = 16_384
_ANY_MASK = Image(modalities=("SEG",), channels=1, rows=8, columns=8, frames="middle")
_OFF = 0.1
"""Of a voxel: so far a frame may lie beside its slice."""

Plane = npt.NDArray[np.bool_]
MASK_REASONS = frozenset(reason for reason in Reason if reason.code.startswith("mask-"))
"""What is wrong with a mask, not with its image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """One frame: what is inside, of which structure (0: of none), and where it lies, or what it was drawn on."""

    inside: Plane
    structure: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    instances: frozenset[str]


def segmented_volume(
    path: Path, of: Volume, *, instances: Collection[str], structures: MaskValues = WHOLE
) -> Volume:
    """Return the structures on the voxels of a volume (`client.structures.Classes`). Slices without a frame are empty.

    The value of a segment is its number. Where two structures overlap, it is the later one of the study's.

    Args:
        path: the SEG.
        of: the volume that it was drawn on.
        instances: SOPInstanceUIDs of the volume's files.
        structures: the study's.

    Raises:
        Unusable: it cannot be read, was drawn on other images, a frame lies on no slice, or no structure is named.
    """
    values = np.zeros(of.values.shape, dtype=np.float32)
    to_voxel = np.linalg.inv(of.steps)
    directions = [of.steps[:, axis] / np.linalg.norm(of.steps[:, axis]) for axis in (2, 1)]
    for frame in _named(_frames(path, of.values.shape[1:], instances, structures)):
        if len(frame.position) != 3 or len(frame.orientation) != 6:
            raise Unusable(Reason.MASK_ELSEWHERE, "A frame does not say where it lies.")
        if np.abs(np.array(frame.orientation) - np.concatenate(directions)).max() > 0.01:
            raise Unusable(Reason.MASK_ELSEWHERE, "A frame lies in another direction than the slices.")
        place = to_voxel @ (np.array(frame.position) - of.origin)
        number = round(float(place[0]))
        if np.abs(place - [number, 0.0, 0.0]).max() > _OFF or not 0 <= number < len(values):
            raise Unusable(Reason.MASK_ELSEWHERE, "A frame lies on no slice.")
        values[number] = np.maximum(values[number], frame.inside * np.float32(frame.structure))
    return Volume(values=values, origin=of.origin, steps=of.steps)


def segmented_plane(
    path: Path, shape: tuple[int, int], *, instance: str, structures: MaskValues = WHOLE
) -> Classes:
    """Return the structures on one plane image, of all frames; none of them: nothing is inside.

    Args:
        path: the SEG.
        shape: rows and columns of the image.
        instance: its SOPInstanceUID.
        structures: the study's.

    Raises:
        Unusable: it cannot be read, or a frame does not say what it was drawn on, or says another image; or no
            structure is named.
    """
    classes = np.zeros(shape, dtype=np.uint8)
    for frame in _named(_frames(path, shape, {instance}, structures)):
        if not frame.instances:
            raise Unusable(Reason.MASK_OF_ANOTHER_IMAGE, "A frame does not say on what it was drawn.")
        classes = np.maximum(classes, frame.inside * np.uint8(frame.structure))
    return classes


def drawn_on(path: Path) -> tuple[str, ...]:
    """Return the SOPInstanceUIDs and SeriesInstanceUIDs of the images that a SEG says it was drawn on; none of others.

    Raises:
        Unusable: it is no DICOM file that can be read.

    Source:
        DICOM PS3.3 sections C.12.2 (Common Instance Reference), C.7.6.16.2.6 (Derivation Image).
    """
    with opened(path, max_inflated=MAX_INFLATED_BYTES) as file:
        header = read_header(file, with_frames=True, besides=("ReferencedSeriesSequence",))
    if code_of(header, "Modality") != "SEG":
        return ()
    found: list[str] = []
    with guarded(Reason.BAD_ATTRIBUTE):
        for series in header.get("ReferencedSeriesSequence") or []:
            found.append(str(series.get("SeriesInstanceUID") or ""))
            for instance in series.get("ReferencedInstanceSequence") or []:
                found.append(str(instance.get("ReferencedSOPInstanceUID") or ""))
        for keyword in FRAME_KEYWORDS:
            found += _sources(list(header.get(keyword) or []))
    return tuple(dict.fromkeys(uid for uid in found if uid))


def _named(frames: Iterator[_Frame]) -> Iterator[_Frame]:
    """The frames of the study's structures. Raises Unusable: something is inside of others, and nothing of these."""
    others = named = False
    for frame in frames:
        inside = bool(frame.inside.any())
        named |= inside and frame.structure > 0
        others |= inside and frame.structure == 0
        if frame.structure:
            yield frame
    if others and not named:
        raise Unusable(Reason.MASK_OTHER_VALUES)


def _frames(
    path: Path, shape: tuple[int, ...], instances: Collection[str], structures: MaskValues
) -> Iterator[_Frame]:
    try:
        yield from _read_frames(path, shape, instances, structures)
    except Unusable as found:
        if found.reason in MASK_REASONS:
            raise
        problem = Reason.MASK_TOO_LARGE if found.reason is Reason.TOO_LARGE else Reason.MASK_UNREADABLE
        raise Unusable(problem, f"({found.reason.code}) {found.detail}".rstrip()) from None


def _read_frames(
    path: Path, shape: tuple[int, ...], instances: Collection[str], structures: MaskValues
) -> Iterator[_Frame]:
    with opened(path, max_inflated=MAX_INFLATED_BYTES) as file:
        header = read_header(file, with_frames=True)
        check_image(header, file, _ANY_MASK)
        dataset = with_pixels(header, file)
    size = tuple(integer_of(dataset, keyword, low=1, high=65535) for keyword in ("Rows", "Columns"))
    if size != tuple(shape):
        raise Unusable(
            Reason.MASK_OTHER_SIZE, f"{size[0]} × {size[1]} pixels; the image has {shape[0]} × {shape[1]}."
        )
    if (number := num_frames(dataset)) > MAX_FRAMES:
        raise Unusable(Reason.MASK_TOO_LARGE, f"{number} frames; at most {MAX_FRAMES} are read.")
    threshold = _threshold(dataset)
    with guarded(Reason.BAD_ATTRIBUTE):
        shared, each = (list(dataset.get(keyword) or []) for keyword in FRAME_KEYWORDS)
    for frame in range(number):
        groups = [*each[frame : frame + 1], *shared[:1]]
        with guarded(Reason.BAD_ATTRIBUTE):
            position = _numbers(groups, "PlanePositionSequence", "ImagePositionPatient")
            orientation = _numbers(groups, "PlaneOrientationSequence", "ImageOrientationPatient")
            sources = frozenset(_sources(groups))
            segment = _numbers(groups, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
        if not sources <= set(instances):
            raise Unusable(Reason.MASK_OF_ANOTHER_IMAGE)
        inside = _stored(dataset, frame, size[0] * size[1]).reshape(size) >= threshold
        yield _Frame(
            inside=inside,
            structure=structure_of(int(segment[0]) if segment else 0, structures),
            position=position,
            orientation=orientation,
            instances=sources,
        )


def _stored(dataset: FileDataset, frame: int, size: int) -> npt.NDArray[np.float64]:
    """The values of one frame. Of one bit each, a frame begins where the last one ended, in the middle of a byte too.

    Source: DICOM PS3.5 section 8.1.1 and PS3.3 section C.7.6.6 (frames of single bits are not padded to bytes).
    """
    syntax = uid_of(str(dataset.file_meta.TransferSyntaxUID))
    if dataset.BitsAllocated != 1 or not is_native(syntax) or not syntax.is_little_endian:
        return decode(dataset, frame).astype(np.float64).ravel()
    first, last = frame * size, (frame + 1) * size
    packed = np.frombuffer(dataset.PixelData[first // 8 : -(-last // 8)], dtype=np.uint8)
    return np.unpackbits(packed, bitorder="little")[first % 8 :][:size].astype(np.float64)


def _threshold(dataset: FileDataset) -> float:
    """What counts as inside: 1 of a binary mask, half of the largest value of a fractional one."""
    kind = code_of(dataset, "SegmentationType")
    if kind == "BINARY":
        return 1.0
    if kind == "FRACTIONAL":
        return integer_of(dataset, "MaximumFractionalValue", low=1, high=255) / 2.0
    raise Unusable(Reason.MASK_UNSUPPORTED, f"Its Segmentation Type is {kind or 'empty'}.")


def _numbers(groups: list[Dataset], sequence: str, keyword: str) -> tuple[float, ...]:
    for group in groups:
        if (items := group.get(sequence)) and keyword in items[0]:
            values = items[0].get(keyword)
            return tuple(float(value) for value in (values if isinstance(values, MultiValue) else [values]))
    return ()


def _sources(groups: list[Dataset]) -> Iterator[str]:
    """SOPInstanceUIDs that a frame was drawn on."""
    for group in groups:
        for derivation in group.get("DerivationImageSequence") or []:
            for source in derivation.get("SourceImageSequence") or []:
                yield str(source.get("ReferencedSOPInstanceUID") or "")
