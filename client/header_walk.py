"""A walk over all elements of a header, those in sequences too, that counts what could identify somebody.

pydicom has read by then what is kept. The walk reads tags and lengths only: no value is turned into text, none is
returned. Sequences and items are walked into instead of being taken apart, so that neither depth nor number costs
memory.
"""

import struct
from collections import Counter
from functools import lru_cache

from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileDataset

from client.basic_profile import kind_of
from client.dicom_file import BoundedReader, Unusable, guarded
from client.identifying_facts import IdentifyingFacts
from client.reasons import Reason

MAX_ELEMENTS = 200_000
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_REMOVED = 0x00120062
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_BYTES = frozenset((b"OB", b"OW"))
_LOOKED_AT = 64
"""Longer values are taken to say something; shorter ones may be blanks and zeros only."""
_AT_ONCE = 2**16


def look_through(file: BoundedReader, header: FileDataset) -> IdentifyingFacts:
    """Count the identifying attributes of the header that hold a value.

    Args:
        file: where `client.dicom_file.read_header` left it: at the pixel data, or at the end. It is left there.
        header: what that returned.

    Source:
        DICOM PS3.5 section 7 (data elements, nesting), PS3.15 annex E (what identifies).
    """
    end = file.tell()
    walk = _Walk(file, end, *(bool(value) for value in header.original_encoding))
    complete = False
    try:
        with guarded(Reason.BROKEN_HEADER):
            complete = walk.finish(_start(file))
    except Unusable:
        pass  # what was seen until then still counts, and the facts say that it is not all
    finally:
        file.seek(end)
    return IdentifyingFacts(**walk.counts, to_remove=walk.to_remove, removed=walk.removed, complete=complete)


def _start(file: BoundedReader) -> int:
    """Where the data set begins: behind the file meta information, which is explicit little endian."""
    position = 132
    while True:
        file.seek(position)
        head = file.read(12)
        if len(head) < 8 or head[:2] != b"\x02\x00":
            return position
        if head[4:6] in _LONG:
            position += 12 + int.from_bytes(head[8:12], "little")
        else:
            position += 8 + int.from_bytes(head[6:8], "little")


@lru_cache(maxsize=2**14)
def _names_sequence(tag: int) -> bool:
    """Whether the standard says that the attribute is a sequence."""
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False


class _Walk:
    """One header. ``counts`` is by field of `IdentifyingFacts`."""

    def __init__(self, file: BoundedReader, end: int, implicit: bool, little_endian: bool) -> None:
        self._file, self._end, self._implicit = file, end, implicit
        order = "<" if little_endian else ">"
        self._tag, self._long = struct.Struct(f"{order}HH"), struct.Struct(f"{order}I")
        self._short = struct.Struct(f"{order}H")
        self._block, self._base = b"", 0
        self._unknown_depth, self._unknown_end = 0, 0
        self.counts: Counter[str] = Counter()
        self.to_remove, self.removed = 0, False

    def finish(self, position: int) -> bool:
        """Walk to the end; False where the header has more elements than are looked at, or ends within one."""
        for _ in range(MAX_ELEMENTS):
            if position + 8 > self._end:
                return position == self._end
            position = self._after(position)
        return False

    def _after(self, position: int) -> int:
        """Count the element here; return where the next one begins, which for a sequence is within it."""
        at = self._reach(position, 12)
        group, element = self._tag.unpack_from(self._block, at)
        tag = group << 16 | element
        if group == 0xFFFE:
            return self._in_sequence(tag, position, at)
        vr, length, begin = self._head(position, at)
        value = position + begin
        if (found := kind_of(tag)) is not None and length and self._says_something(value, length):
            kind, must_go = found
            self.counts[kind.field] += 1
            self.to_remove += must_go
        if tag == _REMOVED and length:
            at = self._reach(value, min(length, _LOOKED_AT))
            self.removed = self._block[at : at + min(length, _LOOKED_AT)].strip(b" \0") == b"YES"
        if length == _UNDEFINED:
            return self._into_undefined(vr, value)
        is_sequence = vr == b"SQ" or (vr in (b"", b"UN") and _names_sequence(tag))
        if vr == b"UN" and is_sequence:  # its content is implicit (PS3.5 section 6.2.2)
            self._unknown_end = max(self._unknown_end, value + length)
        return value if is_sequence else value + length

    def _head(self, position: int, at: int) -> tuple[bytes, int, int]:
        """VR (none where it is implicit), length, and size of the element's head."""
        if self._implicit or self._unknown_depth or position < self._unknown_end:
            return b"", self._long.unpack_from(self._block, at + 4)[0], 8
        vr = self._block[at + 4 : at + 6]
        if vr in _LONG:
            return vr, self._long.unpack_from(self._block, at + 8)[0], 12
        return vr, self._short.unpack_from(self._block, at + 6)[0], 8

    def _in_sequence(self, tag: int, position: int, at: int) -> int:
        if tag == _SEQUENCE_END and self._unknown_depth:
            self._unknown_depth -= 1
        return position + 8

    def _into_undefined(self, vr: bytes, value: int) -> int:
        """A value of undefined length is a sequence, or pixel data in fragments, which are passed over."""
        if vr in _BYTES:
            return self._behind_fragments(value)
        if self._unknown_depth or vr == b"UN":
            self._unknown_depth += 1
        return value

    def _behind_fragments(self, position: int) -> int:
        for _ in range(MAX_ELEMENTS):
            at = self._reach(position, 8)
            group, element = self._tag.unpack_from(self._block, at)
            length = self._long.unpack_from(self._block, at + 4)[0]
            position += 8 + length
            if (group << 16 | element) != _ITEM:
                break
        return position

    def _says_something(self, position: int, length: int) -> bool:
        if length == _UNDEFINED:
            at = self._reach(position, 8)
            return self._tag.unpack_from(self._block, at) != (_SEQUENCE_END >> 16, _SEQUENCE_END & 0xFFFF)
        if length > _LOOKED_AT:
            return True
        at = self._reach(position, length)
        return bool(self._block[at : at + length].strip(b" \0"))

    def _reach(self, position: int, number: int) -> int:
        """Where *position* is in the block in memory, after which *number* bytes follow, as far as there are."""
        if not self._base <= position <= self._base + len(self._block) - number:
            self._file.seek(position)
            self._block, self._base = self._file.read(max(number, _AT_ONCE)), position
        return position - self._base
