"""Reading a JPEG stream's headers: what DICOM must say of a stream that it carries unchanged."""

from dataclasses import dataclass

from pydicom.uid import UID, JPEGBaseline8Bit, JPEGExtended12Bit

_START_OF_FRAME = {0xC0 + number for number in range(16)} - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}


class JpegError(ValueError):
    """A JPEG stream cannot be carried in DICOM as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegFrame:
    """The frame header of a stream.

    Args:
        rows: height in pixels.
        columns: width in pixels.
        num_components: 1 (grey) or 3 (colour).
        photometric_interpretation: (0028,0004) as DICOM PS3.5 section 8.2.1 wants it: ``YBR_FULL_422`` where the
            chrominance is subsampled (4:2:2 or 4:2:0), ``YBR_FULL`` where it is not.
        transfer_syntax: JPEG Baseline, or JPEG Extended for an extended sequential stream of 8 bits.
    """

    rows: int
    columns: int
    num_components: int
    photometric_interpretation: str
    transfer_syntax: UID


def read_jpeg_frame(stream: bytes) -> JpegFrame:
    """Read the headers of *stream*, a whole JPEG file.

    Raises:
        JpegError: it is not a JPEG, ends early, is progressive, lossless or arithmetic, or is not of 8 bits
            with 1 or 3 components.

    Source: ISO/IEC 10918-1, B.2.2 (frame header); DICOM PS3.5 section 8.2.1.
    """
    if stream[:2] != b"\xff\xd8":
        raise JpegError(f"is not a JPEG stream: it starts with {stream[:2].hex() or 'nothing'}, not ffd8")
    if stream.rstrip(b"\x00")[-2:] != b"\xff\xd9":
        raise JpegError(
            "is a truncated JPEG stream: the end-of-image marker is missing; fetch the file again"
        )
    adobe_transform: int | None = None
    position = 2
    while position + 4 <= len(stream):
        marker = stream[position + 1]
        if stream[position] != 0xFF:
            raise JpegError(f"is a damaged JPEG stream: no marker at byte {position}")
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(stream[position + 2 : position + 4], "big")
        segment = stream[position + 4 : position + 2 + length]
        if marker in _START_OF_FRAME:
            return _frame(marker, segment, adobe_transform)
        if marker == 0xEE and segment[:5] == b"Adobe" and len(segment) >= 12:
            adobe_transform = segment[11]
        position += 2 + length
    raise JpegError("is a damaged JPEG stream: it has no frame header")


def _frame(marker: int, segment: bytes, adobe_transform: int | None) -> JpegFrame:
    if marker not in (0xC0, 0xC1):
        kind = "progressive" if marker == 0xC2 else "neither baseline nor extended sequential"
        raise JpegError(
            f"is {kind} (SOF{marker - 0xC0}), which DICOM cannot carry as it is; use baseline JPEG"
        )
    if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        raise JpegError("is a damaged JPEG stream: its frame header is cut short")
    precision, num_components = segment[0], segment[5]
    if precision != 8 or num_components not in (1, 3):
        raise JpegError(
            f"has {precision} bits and {num_components} components; 8 bits and 1 or 3 are supported"
        )
    return JpegFrame(
        rows=int.from_bytes(segment[1:3], "big"),
        columns=int.from_bytes(segment[3:5], "big"),
        num_components=num_components,
        photometric_interpretation=_photometric(segment, num_components, adobe_transform),
        transfer_syntax=JPEGBaseline8Bit if marker == 0xC0 else JPEGExtended12Bit,
    )


def _photometric(segment: bytes, num_components: int, adobe_transform: int | None) -> str:
    if num_components == 1:
        return "MONOCHROME2"
    names, factors = segment[6::3][:3], segment[7::3][:3]
    if adobe_transform == 0 or names == b"RGB":
        return "RGB"
    return "YBR_FULL" if len(set(factors)) == 1 else "YBR_FULL_422"
