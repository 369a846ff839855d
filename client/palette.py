"""PALETTE COLOR: from stored values to red, green and blue, with plain and with segmented palettes."""

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset

from client.dicom_file import guarded
from client.intensity import LookupTable, read_table
from client.reasons import Reason

COLOURS = ("Red", "Green", "Blue")
_MAX_ENTRIES = 2**16


def palette_of(dataset: FileDataset) -> list[LookupTable]:
    """The tables of red, green and blue.

    Raises:
        Unusable: a table is missing or impossible.

    Source:
        DICOM PS3.3 sections C.7.6.3.1.5, C.7.6.3.1.6 and C.7.9 (palettes, segmented ones).
    """
    little_endian = bool(dataset.original_encoding[1])
    with guarded(Reason.BAD_ATTRIBUTE):
        return [_table(dataset, colour, little_endian=little_endian) for colour in COLOURS]


def _table(dataset: FileDataset, colour: str, *, little_endian: bool) -> LookupTable:
    descriptor = list(dataset[f"{colour}PaletteColorLookupTableDescriptor"].value)
    if f"Segmented{colour}PaletteColorLookupTableData" in dataset:
        packed = dataset[f"Segmented{colour}PaletteColorLookupTableData"].value
        words = np.frombuffer(
            packed, dtype=np.uint8 if descriptor[2] == 8 else "<u2" if little_endian else ">u2"
        )
        return read_table(descriptor, expanded(words), little_endian=little_endian)
    data = dataset[f"{colour}PaletteColorLookupTableData"].value
    return read_table(descriptor, data, little_endian=little_endian)


def expanded(words: npt.NDArray[np.unsignedinteger]) -> list[int]:
    """Expand a segmented table.

    Args:
        words: opcode, length and values of each segment: 0 discrete, 1 linear, 2 indirect.

    Returns:
        At most 65,536 entries.

    Raises:
        ValueError: an unknown opcode, a segment that needs more than there is, too many entries.

    Source:
        DICOM PS3.3 section C.7.9.2.
    """
    wide = words.dtype.itemsize == 2
    entries: list[int] = []
    starts: list[int] = []  # of the segments so far, which an indirect one may name
    values = [int(word) for word in words]
    at = 0
    while at + 1 < len(values):  # a single value at the end is padding
        starts.append(at)
        if values[at] != 2:
            at = _direct(values, at, entries)
            continue
        parts = values[at + 2 : at + (4 if wide else 6)]
        bits = 16 if wide else 8
        offset = sum(
            part << (bits * place) for place, part in enumerate(parts)
        )  # least significant part first
        source, rest = divmod(offset, 2 if wide else 1)
        if rest or source not in starts[:-1]:
            raise ValueError("an indirect segment names no segment before it")
        for _ in range(values[at + 1]):
            if values[source] == 2:
                raise ValueError("an indirect segment names an indirect one")
            source = _direct(values, source, entries)
        at += 4 if wide else 6
    return entries


def _direct(values: list[int], at: int, entries: list[int]) -> int:
    """Add a discrete or linear segment to *entries*; return where the next segment begins."""
    opcode, length = values[at], values[at + 1]
    if len(entries) + length > _MAX_ENTRIES:
        raise ValueError("more entries than a table has")
    if opcode == 0:
        found = values[at + 2 : at + 2 + length]
        if len(found) < length:
            raise ValueError("a segment ends too early")
        entries += found
        return at + 2 + length
    if opcode != 1 or not entries:
        raise ValueError(f"segment of kind {opcode}")
    entries += np.rint(np.linspace(entries[-1], values[at + 2], length + 1)[1:]).astype(int).tolist()
    return at + 3
