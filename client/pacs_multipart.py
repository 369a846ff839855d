"""Reading ``multipart/related`` (RFC 2046 section 5.1, RFC 2387) piece by piece, without I/O.

The bytes may come from a broken or hostile service: headers and parts have limits, and nothing is kept of a part
but what cannot be told yet from the delimiter.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

LONGEST_HEADERS_BYTES = 16384
_LONGEST_PADDING_BYTES = 1024
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")  # RFC 2046 section 5.1.1


class MultipartError(ValueError):
    """The stream is no multipart message, or goes beyond a limit. The message holds nothing of its content."""


class PartTooLarge(MultipartError):
    """A part is larger than allowed."""


@dataclass(frozen=True, slots=True)
class PartBegins:
    """A part begins. Names of headers are in small letters."""

    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class PartData:
    """Some bytes of the part."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnds:
    """The part came whole."""


Event = PartBegins | PartData | PartEnds


class _State(Enum):
    PREAMBLE = auto()
    DELIMITER = auto()
    HEADERS = auto()
    BODY = auto()
    EPILOGUE = auto()


def boundary_of(content_type: str) -> str:
    """The boundary that a Content-Type names.

    Raises:
        MultipartError: it is not ``multipart/related``, or names no boundary that may be one.
    """
    kind, *parameters = _split(content_type)
    if kind.strip().lower() != "multipart/related":
        raise MultipartError("the answer is not multipart/related")
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        if equals and name.strip().lower() == "boundary":
            text = value.strip()
            if len(text) >= 2 and text[0] == text[-1] == '"':
                text = re.sub(r"\\(.)", r"\1", text[1:-1])
            if not _BOUNDARY.fullmatch(text):
                raise MultipartError("the boundary is none (RFC 2046 section 5.1.1)")
            return text
    raise MultipartError("the answer names no boundary")


def _split(content_type: str) -> list[str]:
    """The parts between semicolons that are in no quotes."""
    if len(content_type) > LONGEST_HEADERS_BYTES:
        raise MultipartError("the Content-Type is too long")
    return re.findall(r'(?:[^;"]|"(?:[^"\\]|\\.)*"?)+', content_type) or [""]


class MultipartParser:
    """Takes bytes as they come, and tells where parts begin and end.

    Guarantees: however the same bytes are cut into pieces, the events are the same, but for how the data of a part
    are cut; no more than the headers of one part, or a delimiter, are held back.

    Args:
        boundary: from `boundary_of`.
        max_part_bytes: a larger part raises PartTooLarge.
        max_headers_bytes: of one part.
    """

    def __init__(
        self, boundary: str, *, max_part_bytes: int, max_headers_bytes: int = LONGEST_HEADERS_BYTES
    ) -> None:
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._max_part, self._max_headers = max_part_bytes, max_headers_bytes
        self._held = b"\r\n"  # the first delimiter may stand at the very beginning
        self._state = _State.PREAMBLE
        self._part_bytes = 0

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take the next bytes. Consume the whole iterator before feeding again. Raises MultipartError."""
        self._held += data
        step = {
            _State.PREAMBLE: self._preamble,
            _State.DELIMITER: self._after_delimiter,
            _State.HEADERS: self._headers,
            _State.BODY: self._body,
        }
        while self._state is not _State.EPILOGUE:
            state, held = self._state, len(self._held)
            yield from step[state]()
            if (state, held) == (self._state, len(self._held)):
                return
        self._held = b""

    def close(self) -> None:
        """Say that nothing more comes. Raises MultipartError where the closing delimiter is missing."""
        if self._state is not _State.EPILOGUE:
            raise MultipartError("the answer ended before its closing delimiter")

    def _preamble(self) -> Iterator[Event]:
        if self._to_delimiter() is None and len(self._held) > self._max_headers:
            raise MultipartError("no delimiter at the beginning of the answer")
        yield from ()

    def _to_delimiter(self) -> bytes | None:
        """What stands before the next delimiter, which is passed; None where there is none yet."""
        before, found, after = self._held.partition(self._delimiter)
        if not found:
            return None
        self._held, self._state = after, _State.DELIMITER
        return before

    def _after_delimiter(self) -> Iterator[Event]:
        """``--`` closes the message; otherwise padding and an end of line, then headers."""
        yield from ()
        if self._held.startswith(b"--"):
            self._state = _State.EPILOGUE
            return
        line, end, after = self._held.partition(b"\r\n")
        if end:
            if line.strip(b" \t"):
                raise MultipartError("a delimiter is followed by something else")
            # The line's end stays: a part without headers has the empty line right here.
            self._held, self._state = b"\r\n" + after, _State.HEADERS
        elif len(line) > _LONGEST_PADDING_BYTES or line.strip(b" \t\r-"):
            raise MultipartError("a delimiter is followed by something else")

    def _headers(self) -> Iterator[Event]:
        block, end, after = self._held.partition(b"\r\n\r\n")
        if len(block) > self._max_headers:
            raise MultipartError("the headers of a part are too long")
        if not end:
            return
        self._held, self._state, self._part_bytes = after, _State.BODY, 0
        # A delimiter may follow the empty line at once: its line's end is that of the headers.
        self._held = b"\r\n" + self._held
        self._part_bytes = -2
        yield PartBegins(_parsed(block))

    def _body(self) -> Iterator[Event]:
        before = self._to_delimiter()
        if before is not None:
            yield from self._some(before)
            yield PartEnds()
            return
        keep = len(self._delimiter) - 1
        if len(self._held) > keep:
            data, self._held = self._held[:-keep], self._held[-keep:]
            yield from self._some(data)

    def _some(self, data: bytes) -> Iterator[Event]:
        """Data of the part, without the line's end that was put before it."""
        skipped = min(-self._part_bytes, len(data)) if self._part_bytes < 0 else 0
        self._part_bytes += len(data)
        if self._part_bytes > self._max_part:
            raise PartTooLarge("a part is larger than allowed")
        if data[skipped:]:
            yield PartData(data[skipped:])


def _parsed(block: bytes) -> dict[str, str]:
    """Headers of a part; a line that is none is an error, a repeated one too."""
    headers: dict[str, str] = {}
    unfolded = re.sub(rb"\r\n[ \t]+", b" ", block)
    for line in unfolded.split(b"\r\n"):
        if not line:
            continue
        name, colon, value = line.decode("latin-1").partition(":")
        if (
            not colon
            or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
            or "\n" in value
            or "\0" in value
        ):
            raise MultipartError("a header of a part is malformed")
        if name.lower() in headers:
            raise MultipartError("a header of a part is repeated")
        headers[name.lower()] = value.strip()
    return headers
