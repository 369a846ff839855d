"""From stored values to levels in [0, 1]: modality transformation, then window, percentiles or full range.

The lookups are our own: pydicom 3.0 keeps the index of a lookup in the type of its entries, so that a table
of 8-bit entries addressed by more than 8 bits wraps around.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset

from client.dicom_file import Unusable, code_of, guarded, integer_of, number_of, text_of
from client.reasons import Reason
from shared_models.study import Image

Levels = npt.NDArray[np.float64]


class Function(StrEnum):
    """VOI LUT Function (0028,1056)."""

    LINEAR = "LINEAR"
    LINEAR_EXACT = "LINEAR_EXACT"
    SIGMOID = "SIGMOID"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Window Center (0028,1050), Window Width (0028,1051) and VOI LUT Function (0028,1056)."""

    center: float
    width: float
    function: Function = Function.LINEAR

    def apply(self, values: Levels) -> Levels:
        """Return levels in [0, 1], same shape. Source: DICOM PS3.3 section C.11.2.1.2 and C.11.2.1.3."""
        if self.function is Function.SIGMOID:
            with np.errstate(over="ignore"):  # exp overflows to infinity far below the window: level 0
                return np.asarray(1.0 / (1.0 + np.exp(-4.0 * (values - self.center) / self.width)))
        exact = self.function is Function.LINEAR_EXACT
        center, width = (self.center, self.width) if exact else (self.center - 0.5, self.width - 1.0)
        if width == 0.0:  # LINEAR with width 1 is a threshold
            return (values > center).astype(np.float64)
        return np.asarray(np.clip((values - center) / width + 0.5, 0.0, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupTable:
    """An item of a Modality, VOI or palette lookup table. Source: DICOM PS3.3 section C.11.1.1."""

    first_mapped: int
    num_bits: int
    entries: npt.NDArray[np.unsignedinteger]

    def apply(self, values: npt.NDArray[np.generic]) -> Levels:
        """Return the entries for *values*; values outside the table get its first or last entry."""
        index = np.rint(values).astype(np.int64) - self.first_mapped
        return np.asarray(self.entries[np.clip(index, 0, len(self.entries) - 1)], dtype=np.float64)

    @property
    def highest(self) -> float:
        """The highest value that an entry of this many bits can have."""
        return float(2**self.num_bits - 1)


def grey_levels(stored: npt.NDArray[np.generic], dataset: FileDataset, image: Image) -> Levels:
    """Return the levels of a grey image.

    *Window*: the VOI LUT Sequence's first item if there is one, else the first window. A file with neither, or
    with a window that is none (width too small), gets its full range, as for *full-range*. *Percentiles* are
    those of this image after the modality transformation; an image with one value only becomes 0.
    *Full-range* is what BitsStored allows, after the modality transformation; floating-point numbers have no such
    range, and get that from their lowest to their highest value. *Hounsfield* is the study's window over CT numbers.
    MONOCHROME1 is inverted last, but for Hounsfield units, which mean the same however they are shown.

    Args:
        stored: stored values, (rows, columns), integers or floating-point numbers.
        dataset: the file's attributes.
        image: the study's choice.

    Returns:
        (rows, columns) float64 in [0, 1]; 0 is shown black.

    Raises:
        Unusable: an attribute of a lookup table, rescaling or window cannot be parsed; no Hounsfield units.

    Source:
        DICOM PS3.3 sections C.11.1 (modality), C.11.2 (VOI), C.7.6.3.1.2 (MONOCHROME1).
    """
    if image.window_center is not None and image.window_width is not None:  # intensity is "hounsfield"
        window = Window(center=image.window_center, width=image.window_width)
        return window.apply(hounsfield_units(stored, dataset))
    modality = lookup_table(dataset, "ModalityLUTSequence")
    values = modality.apply(stored) if modality else _rescaled(stored.astype(np.float64), dataset)
    if image.intensity == "percentiles":
        low, high = np.percentile(values, [image.low_percentile, image.high_percentile])
        levels = _between(values, float(low), float(high))
    elif image.intensity == "window" and (voi := lookup_table(dataset, "VOILUTSequence")):
        levels = voi.apply(values) / voi.highest
    elif image.intensity == "window" and (own := first_window(dataset)):
        levels = own.apply(values)
    elif stored.dtype.kind == "f":
        levels = _between(values, float(values.min()), float(values.max()))
    else:
        levels = _between(values, *_full_range(dataset, modality))
    return 1.0 - levels if text_of(dataset, "PhotometricInterpretation") == "MONOCHROME1" else levels


def hounsfield_units(stored: npt.NDArray[np.generic], dataset: FileDataset) -> Levels:
    """Return the CT numbers of an image.

    Args:
        stored: stored values, (rows, columns).
        dataset: the image's attributes.

    Returns:
        (rows, columns) float64 in Hounsfield units.

    Raises:
        Unusable: it is no CT, a localizer, has a Modality LUT or another Rescale Type (0028,1054) than HU, or no
            Rescale Slope (0028,1053) above 0 and Intercept (0028,1052). A missing Rescale Type means HU in CT.

    Source:
        DICOM PS3.3 sections C.8.2.1.1.4 (CT numbers) and C.11.1.1.2 (HU).
    """
    slope, intercept = number_of(dataset, "RescaleSlope"), number_of(dataset, "RescaleIntercept")
    kind = code_of(dataset, "RescaleType") or "HU"
    problems = [
        (code_of(dataset, "Modality") != "CT", "Its Modality is not CT."),
        ("LOCALIZER" in text_of(dataset, "ImageType").split("\\"), "It is a localizer."),
        (bool(dataset.get("ModalityLUTSequence")), "It has a Modality LUT Sequence (0028,3000)."),
        (kind != "HU", f"Rescale Type (0028,1054) is {kind}."),
        (
            slope is None or intercept is None,
            "Rescale Slope (0028,1053) or Intercept (0028,1052) is missing.",
        ),
        (slope is not None and slope <= 0.0, "Rescale Slope (0028,1053) is not above 0."),
    ]
    for is_so, detail in problems:
        if is_so:
            raise Unusable(Reason.NOT_HOUNSFIELD, detail)
    return _rescaled(stored.astype(np.float64), dataset)


def has_window(dataset: FileDataset) -> bool:
    """Return whether the file says how it is to be shown: a VOI lookup table or a usable window."""
    return lookup_table(dataset, "VOILUTSequence") is not None or first_window(dataset) is not None


def first_window(dataset: FileDataset) -> Window | None:
    """Return the file's first window, None where it has none or one that the standard does not allow.

    Raises:
        Unusable: center or width is not a number, or the function is unknown.

    Source:
        DICOM PS3.3 section C.11.2.1.2 (width at least 1 for LINEAR, above 0 otherwise).
    """
    center, width = number_of(dataset, "WindowCenter"), number_of(dataset, "WindowWidth")
    name = code_of(dataset, "VOILUTFunction") or Function.LINEAR
    if center is None or width is None:
        return None
    if name not in set(Function):
        raise Unusable(Reason.BAD_ATTRIBUTE, f"VOI LUT Function (0028,1056) {name} is not known.")
    function = Function(name)
    if width < 1.0 if function is Function.LINEAR else width <= 0.0:
        return None
    return Window(center=center, width=width, function=function)


def lookup_table(dataset: FileDataset, keyword: str) -> LookupTable | None:
    """Return the first item of a sequence of lookup tables, None where there is none. Raises Unusable."""
    with guarded(Reason.BAD_ATTRIBUTE):
        items = dataset.get(keyword)
        if not items:
            return None
        item: Dataset = items[0]
        return read_table(item.LUTDescriptor, item.LUTData, little_endian=bool(dataset.original_encoding[1]))


def read_table(descriptor: list[int], data: bytes | list[int] | int, *, little_endian: bool) -> LookupTable:
    """Build a lookup table.

    Args:
        descriptor: number of entries (0 means 65,536), first value mapped, bits of an entry (8 to 16).
        data: the entries: packed, 8 or 16 bits each, or as integers.
        little_endian: byte order of packed 16-bit entries.

    Raises:
        ValueError: the descriptor is impossible, or there are fewer entries than it says.

    Source:
        DICOM PS3.3 sections C.11.1.1 and C.7.6.3.1.5.
    """
    num_entries, first_mapped, num_bits = (int(value) for value in descriptor)
    num_entries = num_entries or 2**16
    if not 8 <= num_bits <= 16 or not 0 < num_entries <= 2**16:
        raise ValueError(f"impossible descriptor {descriptor}")
    entries: npt.NDArray[np.unsignedinteger]
    if isinstance(data, bytes):
        wide = np.dtype("<u2" if little_endian else ">u2")
        entries = np.frombuffer(
            data, dtype=wide if num_bits > 8 or len(data) >= 2 * num_entries else np.uint8
        )
    else:
        entries = np.atleast_1d(np.asarray(data, dtype=np.uint16))
    if len(entries) < num_entries:
        raise ValueError(f"{len(entries)} entries where the descriptor says {num_entries}")
    clipped = np.minimum(entries[:num_entries].astype(np.uint16), np.uint16(2**num_bits - 1))
    return LookupTable(first_mapped=first_mapped, num_bits=num_bits, entries=clipped)


def _rescaled(values: Levels, dataset: FileDataset) -> Levels:
    """Rescale Slope (0028,1053) and Intercept (0028,1052), 1 and 0 where they are missing."""
    slope, intercept = number_of(dataset, "RescaleSlope"), number_of(dataset, "RescaleIntercept")
    return np.asarray(values * (1.0 if slope is None else slope) + (intercept or 0.0))


def _full_range(dataset: FileDataset, modality: LookupTable | None) -> tuple[float, float]:
    """The lowest and the highest value that BitsStored (0028,0101) allows, after the modality transformation."""
    if modality:
        return 0.0, modality.highest
    bits = integer_of(dataset, "BitsStored", low=1, high=32)
    signed = integer_of(dataset, "PixelRepresentation", low=0, high=1) == 1
    ends = [-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1] if signed else [0.0, 2.0**bits - 1]
    low, high = sorted(_rescaled(np.asarray(ends), dataset).tolist())
    return low, high


def _between(values: Levels, low: float, high: float) -> Levels:
    """Map [low, high] to [0, 1], cut outside; everything 0 where low and high are the same."""
    if not high > low:
        return np.zeros_like(values)
    return np.asarray(np.clip((values - low) / (high - low), 0.0, 1.0))
