"""What a compressed frame says of its own size, read without decoding it."""

_SOF_NONE = {0xC4, 0xC8, 0xCC}  # among 0xC0..0xCF: Huffman tables, reserved, arithmetic conditioning
_SOF_JPEG_LS = 0xF7
_STANDALONE = {0x01, *range(0xD0, 0xD8)}
_SIZ = b"\xff\x4f\xff\x51"


def stream_size(stream: bytes) -> tuple[int, int, int] | None:
    """Return (rows, columns, components) of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K stream, None where it has none.

    Source:
        ITU-T T.81 section B.2.2 (frame header), ITU-T T.87 section C.2.2, ITU-T T.800 section A.5.1 (SIZ).
    """
    if stream[:2] == b"\xff\xd8":
        return _jpeg_size(stream)
    at = stream[:4096].find(_SIZ)  # at 0, or behind the boxes of JP2
    return _siz_size(stream[at + 4 :]) if at >= 0 else None


def _jpeg_size(stream: bytes) -> tuple[int, int, int] | None:
    at = 2
    while at + 10 <= len(stream):
        if stream[at] != 0xFF:
            return None
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif (0xC0 <= marker <= 0xCF and marker not in _SOF_NONE) or marker == _SOF_JPEG_LS:
            rows, columns = (int.from_bytes(stream[at + n : at + n + 2], "big") for n in (5, 7))
            return rows, columns, stream[at + 9]
        else:
            at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None


def _siz_size(segment: bytes) -> tuple[int, int, int] | None:
    """The segment from its length on: Lsiz Rsiz Xsiz Ysiz XOsiz YOsiz XTsiz YTsiz XTOsiz YTOsiz Csiz."""
    if len(segment) < 38:
        return None
    x1, y1, x0, y0 = (int.from_bytes(segment[n : n + 4], "big") for n in (4, 8, 12, 16))
    return y1 - y0, x1 - x0, int.from_bytes(segment[36:38], "big")
