"""Which way up an image lies, as its header says it, and how it is turned to the standard orientation."""

import re

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset

from client.dicom_file import Unusable, code_of, guarded, text_of
from client.reasons import Reason

_AXES = {"L": "x", "R": "x", "P": "y", "A": "y", "H": "z", "F": "z"}
_STANDARD = {
    frozenset("xz"): ("L", "F"),  # frontal: the patient faces the viewer, head up
    frozenset("yz"): ("P", "F"),  # lateral: the patient faces left, head up
    frozenset("xy"): ("L", "P"),  # axial: seen from the feet, front up
}
_COSINES = (("L", "R"), ("P", "A"), ("H", "F"))


def directions_of(dataset: FileDataset) -> tuple[str, str] | None:
    """Where rows run to (to the right) and columns run to (down): L, R, A, P, H or F; None where nothing says it.

    Of an oblique direction the largest part counts. Image Orientation (Patient) goes before Patient Orientation.

    Raises:
        Unusable: what the header says is no orientation.

    Source:
        DICOM PS3.3 sections C.7.6.2.1.1 (0020,0037) and C.7.6.1.1.1 (0020,0020).
    """
    if text_of(dataset, "ImageOrientationPatient"):
        with guarded(Reason.ORIENTATION):
            cosines = [float(value) for value in dataset.ImageOrientationPatient]
            found = [_largest(cosines[start : start + 3]) for start in (0, 3)]
            told = len(cosines) == 6
    elif text := text_of(dataset, "PatientOrientation"):
        parts = text.split("\\")
        told = len(parts) == 2 and all(re.fullmatch("[LRAPHF]{1,3}", part) for part in parts)
        found = [part[:1] for part in parts]
    else:
        return None
    if not told or _AXES[found[0]] == _AXES[found[1]]:
        raise Unusable(Reason.ORIENTATION, "It names no two directions of a patient.")
    return found[0], found[1]


def transposed(dataset: FileDataset) -> bool:
    """Whether rows and columns change places on the way to the standard orientation. Raises Unusable."""
    directions = directions_of(dataset)
    if directions is None:
        return False
    across = _AXES[directions[0]]
    if code_of(dataset, "Modality") == "MG":
        if across != "y":
            raise Unusable(Reason.ORIENTATION, "A mammogram whose rows do not run to the front or the back.")
        return False
    return across != _AXES[_target(directions)[0]]


def upright(planes: npt.NDArray[np.float32], dataset: FileDataset) -> npt.NDArray[np.float32]:
    """Turn and mirror an image to the standard orientation.

    Frontal images have the patient's left at the right and the feet below, lateral ones the back at the right and
    the feet below, axial ones the left at the right and the back below. Mammograms are not turned: how they hang
    depends on side and view; one that lies on its side is refused. An image whose header says nothing stays as it is.

    Args:
        planes: (..., rows, columns).
        dataset: the image's attributes.

    Returns:
        The same values; rows and columns have changed places where `transposed` says so.

    Raises:
        Unusable: what the header says is no orientation.
    """
    directions = directions_of(dataset)
    swap = transposed(dataset)
    if directions is None or code_of(dataset, "Modality") == "MG":
        return planes
    if swap:
        planes, directions = np.swapaxes(planes, -2, -1), directions[::-1]
    target = _target(directions)
    if directions[0] != target[0]:
        planes = planes[..., ::-1]
    if directions[1] != target[1]:
        planes = planes[..., ::-1, :]
    return np.ascontiguousarray(planes)


def _target(directions: tuple[str, str]) -> tuple[str, str]:
    return _STANDARD[frozenset(_AXES[direction] for direction in directions)]


def _largest(cosines: list[float]) -> str:
    """The direction of the largest part of a vector (x to the left, y to the back, z to the head)."""
    axis = int(np.argmax(np.abs(cosines)))
    if not np.isfinite(cosines).all() or cosines[axis] == 0.0:
        raise ValueError("no direction")
    return _COSINES[axis][0 if cosines[axis] > 0.0 else 1]
