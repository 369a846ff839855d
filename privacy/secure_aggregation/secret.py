"""Bytes that are overwritten when they are no longer needed, as well as Python can.

Copies that a library made on its way are not reached. The bytes never show in a representation or a traceback.
"""

from collections.abc import Iterable


class Secret:
    """Bytes in memory, readable until `erase`."""

    __slots__ = ("_bytes",)

    def __init__(self, value: bytes) -> None:
        self._bytes: bytearray | None = bytearray(value)

    @property
    def value(self) -> bytes:
        """The bytes. Raises RuntimeError once they are erased: a step was called in the wrong state."""
        if self._bytes is None:
            raise RuntimeError("a secret is used after it was erased")
        return bytes(self._bytes)

    @property
    def erased(self) -> bool:
        """Whether the bytes are gone."""
        return self._bytes is None

    def erase(self) -> None:
        """Overwrite the bytes and drop them."""
        if self._bytes is not None:
            self._bytes[:] = bytes(len(self._bytes))
            self._bytes = None

    def __repr__(self) -> str:
        return "Secret(erased)" if self._bytes is None else "Secret(...)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is never written anywhere")


def erase_all(secrets: Iterable[Secret]) -> None:
    """Erase each."""
    for secret in secrets:
        secret.erase()
