"""The pixel data of one DICOM file: checked against the study and the file's size, then decoded."""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset
from pydicom.filereader import read_dataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, RLELossless

from client.decoders import DEFLATED_FRAMES, check_stream, inflated_frame, is_native, plugin_for
from client.dicom_file import (
    MAX_INFLATED_BYTES,
    BoundedReader,
    Unusable,
    code_of,
    guarded,
    integer_of,
    name_of,
    opened,
    read_header,
    text_of,
    uid_of,
)
from client.frames import chosen_frame, num_frames, take_frame
from client.reasons import Reason
from shared_models.study import Image

# A single frame of a mammogram or a photograph has well below this. A file may have twice as much, since compressed
# data may be somewhat longer than what they hold.
MAX_PIXEL_BYTES = 256 * 2**20

GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
PALETTE = "PALETTE COLOR"

_PIXEL_DATA = 0x7FE00010
_FLOAT_BITS = {0x7FE00008: 32, 0x7FE00009: 64}  # Float and Double Float Pixel Data


def read_image(path: Path, image: Image) -> FileDataset:
    """Read one file that is to be an image of the study.

    Returns:
        The attributes in `client.dicom_file.HEADER_KEYWORDS`, those of the frame that the study takes, and Pixel Data
        (7FE0,0010), Float Pixel Data (7FE0,0008) or Double Float Pixel Data (7FE0,0009), not yet decoded.

    Raises:
        Unusable: with the reason.
    """
    with opened(path, max_inflated=MAX_INFLATED_BYTES) as file:
        header = read_header(file, with_frames=True)
        check_image(header, file, image)
        take_frame(header, chosen_frame(header, image))
        return with_pixels(header, file)


def check_image(header: FileDataset, file: BoundedReader, image: Image) -> None:
    """Check all that can be known before pixel data are read or decoded; reserves no memory for them.

    Args:
        header: what `client.dicom_file.read_header` returned.
        file: where it left the file.
        image: what the study wants.

    Raises:
        Unusable: no image, another modality, truncated, unsupported or contradictory attributes, too large,
            several frames, colour instead of grey or the reverse, unsupported transfer syntax.

    Source:
        DICOM PS3.3 section C.7.6.3 (Image Pixel Module), PS3.5 section 8.
    """
    element = _next_tag(header, file)
    _check_kind(header, element, image)
    chosen_frame(header, image)
    num_bytes = _claimed_bytes(header)
    if max(num_bytes, file.num_bytes // 2) > MAX_PIXEL_BYTES:
        largest = max(num_bytes, file.num_bytes)
        raise Unusable(Reason.TOO_LARGE, f"{largest} bytes; at most {MAX_PIXEL_BYTES} are read.")
    photometric = _check_pixels(header, _FLOAT_BITS.get(element or 0))
    if (photometric in GREY) != (image.channels == 1):
        raise Unusable(Reason.CHANNEL_MISMATCH, f"Photometric Interpretation is {photometric}.")
    transfer_syntax = _check_transfer_syntax(header)
    if transfer_syntax == RLELossless and header.BitsAllocated == 1:
        raise Unusable(Reason.UNSUPPORTED_PIXELS, "One bit with RLE.")
    needed = _native_bytes(header, photometric)
    if is_native(transfer_syntax) and file.num_bytes - file.tell() < needed:
        raise Unusable(Reason.TRUNCATED, f"{needed} bytes of pixel data expected.")


def with_pixels(header: FileDataset, file: BoundedReader) -> FileDataset:
    """Read the pixel data element, where *file* stands, and put it into *header*. Raises Unusable."""
    with guarded(Reason.TRUNCATED):
        implicit, little_endian = header.original_encoding
        rest = read_dataset(file, bool(implicit), bool(little_endian), stop_when=_after_pixel_data)
        element = next(tag for tag in (_PIXEL_DATA, *_FLOAT_BITS) if tag in rest)
        header[element] = rest[element]
    native = is_native(uid_of(str(header.file_meta.TransferSyntaxUID)))
    needed = _native_bytes(header, text_of(header, "PhotometricInterpretation"))
    if native and len(header[element].value or b"") < needed:
        raise Unusable(Reason.TRUNCATED, f"{needed} bytes of pixel data expected.")
    return header


def decode(dataset: FileDataset, frame: int = 0) -> npt.NDArray[np.generic]:
    """Decode one frame of the pixel data.

    Args:
        dataset: what `read_image` returned.
        frame: which one, from 0.

    Returns:
        Stored values: (rows, columns) integers of BitsStored bits, or floating-point numbers, for grey and palette;
        (rows, columns, 3) RGB for colour.

    Raises:
        Unusable: the pixel data cannot be decoded.

    Source:
        DICOM PS3.5 section 8 (encoding of pixel data); PS3.3 section C.7.6.3.1.2 (YBR to RGB).
    """
    with guarded(Reason.UNDECODABLE):
        if dataset.file_meta.TransferSyntaxUID == DEFLATED_FRAMES:
            dataset, frame = inflated_frame(dataset, frame), 0
        plugin = plugin_for(dataset.file_meta.TransferSyntaxUID, int(dataset.get("BitsStored") or 0))
        if plugin:
            check_stream(dataset, frame)
        values = pixel_array(dataset, index=frame, decoding_plugin=plugin)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    grey = text_of(dataset, "PhotometricInterpretation") in GREY | {PALETTE}
    if values.shape != ((rows, columns) if grey else (rows, columns, 3)):
        raise Unusable(Reason.UNDECODABLE, "Its pixel data have another shape than its header says.")
    return values


def _next_tag(header: FileDataset, file: BoundedReader) -> int | None:
    """The tag where *file* stands, which is that of the pixel data or behind the end of the data set."""
    start = file.peek(4)[:4]
    if len(start) < 4:
        return None
    order: Literal["little", "big"] = "little" if header.original_encoding[1] else "big"
    return int.from_bytes(start[:2], order) << 16 | int.from_bytes(start[2:], order)


def _check_kind(header: FileDataset, element: int | None, image: Image) -> None:
    """Is it an image at all, one of the study's, and with pixel data?"""
    sop_class = uid_of(text_of(header, "SOPClassUID") or _class_of_meta(header))
    has_pixels = element == _PIXEL_DATA or element in _FLOAT_BITS
    if not has_pixels and "Rows" not in header and "Image Storage" not in sop_class.name:
        raise Unusable(Reason.NOT_AN_IMAGE, name_of(sop_class))
    modality = code_of(header, "Modality")
    if modality not in image.modalities and (modality or has_pixels):
        wanted = ", ".join(image.modalities)
        raise Unusable(Reason.OTHER_MODALITY, f"It is {modality or 'empty'}; the study uses {wanted}.")
    if not has_pixels:
        raise Unusable(Reason.TRUNCATED)


def _class_of_meta(header: FileDataset) -> str:
    """Media Storage SOP Class UID (0002,0002), or nothing."""
    with guarded(Reason.BROKEN_HEADER):
        return str(header.file_meta.get("MediaStorageSOPClassUID") or "")


def _claimed_bytes(header: FileDataset) -> int:
    """Bytes of one decoded frame, as the header says; a pixel of one bit becomes a byte."""
    rows, columns = (integer_of(header, keyword, low=1, high=65535) for keyword in ("Rows", "Columns"))
    samples = integer_of(header, "SamplesPerPixel", low=1, high=4, default=1)
    bits = integer_of(header, "BitsAllocated", low=1, high=64)
    return rows * columns * samples * max(bits, 8) // 8


def _native_bytes(header: FileDataset, photometric: str) -> int:
    """Bytes of all frames where they are not compressed."""
    bits = integer_of(header, "BitsAllocated", low=1, high=64)
    samples = integer_of(header, "SamplesPerPixel", low=1, high=4, default=1)
    pixels = num_frames(header) * int(header.Rows) * int(header.Columns) * samples
    num_bytes = (pixels * bits + 7) // 8
    return num_bytes * 2 // 3 if photometric == "YBR_FULL_422" else num_bytes


def _check_pixels(header: FileDataset, float_bits: int | None) -> str:
    """Return the photometric interpretation, if the attributes of the pixels are what the rest is made for."""
    photometric = text_of(header, "PhotometricInterpretation")
    if photometric not in GREY | COLOUR | {PALETTE}:
        shown = code_of(header, "PhotometricInterpretation")
        raise Unusable(Reason.UNSUPPORTED_PIXELS, f"Photometric Interpretation is {shown or 'empty'}.")
    samples = integer_of(header, "SamplesPerPixel", low=1, high=4, default=1)
    if samples != (3 if photometric in COLOUR else 1):
        raise Unusable(Reason.BAD_ATTRIBUTE, f"{photometric} with {samples} samples per pixel.")
    bits = integer_of(header, "BitsAllocated", low=1, high=64)
    if float_bits is not None:
        if bits != float_bits or photometric not in GREY:
            raise Unusable(Reason.BAD_ATTRIBUTE, f"Floating-point numbers, {bits} bits, {photometric}.")
        return photometric
    if bits not in (8, 16, 32) and not (bits == 1 and photometric in GREY):
        raise Unusable(Reason.UNSUPPORTED_PIXELS, f"Bits Allocated is {bits}.")
    integer_of(header, "BitsStored", low=1, high=bits)
    if integer_of(header, "PixelRepresentation", low=0, high=1) == 1 and photometric not in GREY:
        raise Unusable(Reason.UNSUPPORTED_PIXELS, "Colour with signed samples.")
    tables = ("RedPaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData")
    if photometric == PALETTE and not any(keyword in header for keyword in tables):
        raise Unusable(Reason.BAD_ATTRIBUTE, "Its palette is missing.")
    return photometric


def _check_transfer_syntax(header: FileDataset) -> UID:
    """Return the transfer syntax if it can be decoded here."""
    with guarded(Reason.UNSUPPORTED_TRANSFER_SYNTAX):
        transfer_syntax = uid_of(str(header.file_meta.TransferSyntaxUID))
        if transfer_syntax != DEFLATED_FRAMES and not transfer_syntax.is_transfer_syntax:
            raise Unusable(Reason.UNSUPPORTED_TRANSFER_SYNTAX, name_of(transfer_syntax))
        plugin_for(transfer_syntax, integer_of(header, "BitsStored", low=1, high=64, default=64))
    return transfer_syntax


def _after_pixel_data(tag: int, vr: str | None, length: int) -> bool:
    return tag > _PIXEL_DATA
