"""A deflated DICOM file, read as if it were not: inflated as far as it is read, and never beyond a limit."""

import io
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_RATIO = 1032
"""DEFLATE makes nothing more than this many times smaller."""

_STEP = 2**18


class InflatedFile(io.RawIOBase):
    """The bytes *before*, then the inflated rest of *file*.

    Args:
        file: stands where the deflated data begin.
        before: what is read before them.
        limit: no more bytes than these are inflated; further ones read as the end of the file.

    Source:
        DICOM PS3.5 section A.5 (Deflated Explicit VR Little Endian): RFC 1951, without zlib's header.
    """

    def __init__(self, file: io.BufferedReader, before: bytes, limit: int) -> None:
        super().__init__()
        self._file, self._content, self._at = file, bytearray(before), 0
        self._begins = len(before)
        self.name = file.name  # parsers ask for it
        self._limit = len(before) + limit
        self._inflate = zlib.decompressobj(wbits=-zlib.MAX_WBITS)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True, but not from the end, which nobody knows."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to *offset*. Inflates nothing."""
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of deflated data is not known")
        self._at = max(0, offset + (self._at if whence == io.SEEK_CUR else 0))
        return self._at

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Read into *buffer*. Raises zlib.error where the data are damaged."""
        view = memoryview(buffer).cast("B")
        if self._at < self._begins:  # what is not deflated can be read even where the rest is damaged
            view = view[: self._begins - self._at]
        self._reach(self._at + len(view))
        found = self._content[self._at : self._at + len(view)]
        view[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        """Close the deflated file too."""
        self._file.close()
        super().close()

    def _reach(self, end: int) -> None:
        """Inflate up to *end*, if there is so much and the limit allows it."""
        end = min(end, self._limit)
        while len(self._content) < end and not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(_STEP)
            if not packed:
                return
            self._content += self._inflate.decompress(packed, min(_STEP, end - len(self._content)))
