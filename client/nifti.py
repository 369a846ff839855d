"""Reading a mask from NIfTI-1, inflated no further than its header allows.

A reader of our own, because a mask may be as hostile as any file: what is needed of the format is one header of 348
bytes and one array. Source: nifti1.h of the NIfTI Data Format Working Group (2003), with its two ways to say where
voxels lie.
"""

import math
import struct
import zlib
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from client.dicom_file import Unusable
from client.reasons import Reason
from client.structures import WHOLE, MaskValues, classes_of
from client.volume import Millimetres, Volume

MAX_VOXELS = 2**28
_HEADER = 348
_LARGEST_OFFSET = 2**20
"""Extensions lie between header and voxels; those of a mask are short."""
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_LPS = np.diag([-1.0, -1.0, 1.0])
"""NIfTI counts towards right, front and head; DICOM towards left, back and head."""


def read_nifti(path: Path, structures: MaskValues = WHOLE) -> Volume:
    """Read one volume.

    Args:
        path: ``.nii``, or gzip of one; which it is says its beginning.
        structures: the study's.

    Returns:
        float32 numbers of structures (`client.structures.Classes`), in DICOM's system of the patient.

    Raises:
        Unusable: no NIfTI-1 in one file, damaged, too large, not of three dimensions, without a place, or of other
            values.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            source: _Source = _Inflated(file) if packed else file
            header = _exactly(source, _HEADER)
            order = _byte_order(header)
            shape, kind, start = _layout(header, order)
            _exactly(source, start - _HEADER)
            values = np.frombuffer(
                _exactly(source, math.prod(shape) * np.dtype(kind).itemsize), np.dtype(order + kind)
            )
    except (OSError, zlib.error, EOFError, struct.error) as error:
        raise Unusable(Reason.MASK_UNREADABLE, f"({type(error).__name__})") from None
    slope, intercept = struct.unpack_from(f"{order}2f", header, 112)
    if not (slope in (0.0, 1.0) and intercept == 0.0):
        # of a slope of 0 the format says that there is no scaling
        values = values.astype(np.float32) * (slope or 1.0) + (intercept if slope else 0.0)
    classes = classes_of(values, structures).astype(np.float32)
    origin, steps = _place(header, order)
    return Volume(values=classes.reshape(shape[::-1]), origin=origin, steps=steps[:, ::-1])


class _Source(Protocol):
    def read(self, number: int, /) -> bytes: ...


class _Inflated:
    """A gzip file of which so much is inflated as is asked for."""

    def __init__(self, file: _Source) -> None:
        self._file, self._inflate = file, zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    def read(self, number: int, /) -> bytes:
        """At most *number* bytes, fewer at the end."""
        found = bytearray()
        while len(found) < number and not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(2**16)
            part = self._inflate.decompress(packed, number - len(found))
            if not packed and not part:
                break
            found += part
        return bytes(found)


def _exactly(source: _Source, number: int) -> bytes:
    content = source.read(number)
    if len(content) != number:
        raise EOFError
    return content


def _byte_order(header: bytes) -> str:
    if header[344:348] != b"n+1\0":
        raise Unusable(Reason.MASK_UNSUPPORTED, "It is no NIfTI-1 in one file.")
    for order in "<>":
        if struct.unpack_from(f"{order}i", header)[0] == _HEADER:
            return order
    raise Unusable(Reason.MASK_UNREADABLE, "Its header says another length than 348.")


def _layout(header: bytes, order: str) -> tuple[tuple[int, int, int], str, int]:
    """Columns, rows and slices; the type of a voxel; where the voxels begin."""
    dimensions = struct.unpack_from(f"{order}8h", header, 40)
    used = dimensions[1 : 1 + dimensions[0]]
    if not 3 <= dimensions[0] <= 7 or any(size != 1 for size in used[3:]):
        raise Unusable(Reason.MASK_UNSUPPORTED, "It is not one volume of three dimensions.")
    if any(size < 1 for size in used):
        raise Unusable(Reason.MASK_UNREADABLE, "It claims dimensions below 1.")
    if math.prod(used) > MAX_VOXELS:
        raise Unusable(Reason.MASK_TOO_LARGE, f"{math.prod(used)} voxels; at most {MAX_VOXELS} are read.")
    code, offset = (
        struct.unpack_from(f"{order}h", header, 70)[0],
        struct.unpack_from(f"{order}f", header, 108)[0],
    )
    if code not in _TYPES:
        raise Unusable(Reason.MASK_UNSUPPORTED, f"Its data type is number {code}.")
    if not (_HEADER <= offset <= _LARGEST_OFFSET and offset == int(offset)):
        raise Unusable(Reason.MASK_UNREADABLE, "Its voxels begin nowhere.")
    columns, rows, slices = used[:3]
    return (columns, rows, slices), _TYPES[code], int(offset)


def _place(header: bytes, order: str) -> tuple[Millimetres, Millimetres]:
    """Origin, and the steps along columns, rows and slices, in DICOM's system. The sform goes before the qform."""
    qform, sform = struct.unpack_from(f"{order}2h", header, 252)
    if sform > 0:
        matrix = np.array(struct.unpack_from(f"{order}12f", header, 280), dtype=np.float64).reshape(3, 4)
        origin, steps = matrix[:, 3], matrix[:, :3]
    elif qform > 0:
        origin, steps = _by_quaternion(header, order)
    else:
        raise Unusable(Reason.MASK_ELSEWHERE, "It has neither sform nor qform.")
    if not (np.isfinite(steps).all() and np.isfinite(origin).all()) or abs(np.linalg.det(steps)) < 1e-6:
        raise Unusable(Reason.MASK_ELSEWHERE, "Its axes are none.")
    return _LPS @ origin, _LPS @ steps


def _by_quaternion(header: bytes, order: str) -> tuple[Millimetres, Millimetres]:
    """Source: nifti1.h, "METHOD 2"."""
    values: npt.NDArray[np.float64] = np.array(struct.unpack_from(f"{order}8f", header, 76), dtype=np.float64)
    b, c, d, *offset = (float(value) for value in struct.unpack_from(f"{order}6f", header, 256))
    a = math.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    sizes = values[1:4] * np.array([1.0, 1.0, -1.0 if values[0] < 0.0 else 1.0])
    return np.array(offset), turn * sizes
