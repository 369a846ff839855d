"""Bytes of the protocol: one injective encoding for what is hashed or signed, and a strict reader of messages.

`statement` is injective: two different lists of fields never give the same bytes, because each field carries its
type and length. `Reader` takes a message apart and refuses whatever its writer would not have written.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from privacy.secure_aggregation.refusals import Malformed

Field: TypeAlias = "int | str | bytes | Sequence[Field]"

PROTOCOL = "collegium-secure-aggregation-1"
MAX_NAME_BYTES = 255


def statement(label: str, *fields: Field) -> bytes:
    """Return the one encoding of *fields* under *label* and this version of the protocol."""
    return b"".join(_parts((PROTOCOL, label, *fields)))


def digest(label: str, *fields: Field) -> bytes:
    """Return the SHA-256 of `statement`, 32 bytes; a large field is not copied for it."""
    hasher = hashlib.sha256()
    for part in _parts((PROTOCOL, label, *fields)):
        hasher.update(part)
    return hasher.digest()


def _parts(field: Field) -> Iterable[bytes]:
    if isinstance(field, int):
        yield b"i" + struct.pack(">Q", field)
    elif isinstance(field, str):
        text = field.encode("utf-8")
        yield b"s" + struct.pack(">Q", len(text))
        yield text
    elif isinstance(field, bytes):
        yield b"b" + struct.pack(">Q", len(field))
        yield field
    else:
        yield b"t" + struct.pack(">Q", len(field))
        for entry in field:
            yield from _parts(entry)


class Writer:
    """Puts a message together; each `write` has its counterpart in `Reader`."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def number(self, value: int) -> None:
        """Four bytes, big-endian."""
        self._parts.append(struct.pack(">I", value))

    def fixed(self, value: bytes) -> None:
        """Bytes whose number both sides know."""
        self._parts.append(value)

    def name(self, value: str) -> None:
        """A short text, with its length."""
        text = value.encode("utf-8")
        self.number(len(text))
        self.fixed(text)

    def result(self) -> bytes:
        """The message."""
        return b"".join(self._parts)


class Reader:
    """Takes a message apart. Every method raises Malformed where the bytes do not fit."""

    def __init__(self, message: bytes, what: str) -> None:
        self._message = message
        self._at = 0
        self._what = what

    def number(self, *, least: int = 0, most: int = 2**32 - 1) -> int:
        """A number from *least* to *most*."""
        (value,) = struct.unpack(">I", self.fixed(4))
        if not least <= value <= most:
            raise Malformed(f"{self._what}: a number is {value}, allowed are {least} to {most}")
        return int(value)

    def fixed(self, length: int) -> bytes:
        """Exactly *length* bytes."""
        value = self._message[self._at : self._at + length]
        if len(value) != length:
            raise Malformed(f"{self._what}: ends after {len(self._message)} bytes, before it is complete")
        self._at += length
        return value

    def name(self) -> str:
        """A short text."""
        raw = self.fixed(self.number(least=1, most=MAX_NAME_BYTES))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Malformed(f"{self._what}: a name is not UTF-8") from error

    def end(self) -> None:
        """The message is over."""
        if self._at != len(self._message):
            raise Malformed(f"{self._what}: {len(self._message) - self._at} bytes too many")


def check_increasing(positions: Sequence[int], num_sites: int, what: str) -> None:
    """Check that *positions* are a strictly increasing list below *num_sites*. Raises Malformed."""
    ordered = all(first < second for first, second in zip(positions, positions[1:], strict=False))
    if not ordered or any(not 0 <= position < num_sites for position in positions):
        raise Malformed(f"{what}: positions {list(positions)[:20]} are not increasing below {num_sites}")
