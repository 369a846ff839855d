"""What the gate answers itself: a site's ``collegium-client doctor`` asks for the time and measures the connection.

Whoever reaches the gate may ask, before any key is known to the server. Guarantees:
    * The answer holds the time, the roster's version number and how many bytes came; no name, key or hash.
    * Behind it come as many spaces as were asked for, and never more than bytes came: the gate amplifies nothing.
    * Nothing is kept: the body is thrown away as it comes, and an answer is sent in small pieces.
    * At most `MAX_AT_ONCE` are served at a time, each for `MAX_SECONDS`; others are told to come again. The calls
      that the gate passes on are not counted here and do not wait for these.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

TARGET = b"/v1/collegium/doctor"
REPLY_BYTES = b"collegium-reply-bytes"
MAX_REPLY_DIGITS = 12
MAX_AT_ONCE = 8
MAX_SECONDS = 300.0
PIECE_BYTES = 1 << 16

Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]


class DoctorRefused(Exception):
    """The request is not answered: HTTP status and a line of text."""

    def __init__(self, status: int, text: bytes) -> None:
        super().__init__(text.decode("ascii"))
        self.status, self.text = status, text


class GateDoctor:
    """Answers the one call of ``doctor``.

    Args:
        roster_version: number of the roster with which the server was started.
        now: seconds since 1970.
    """

    def __init__(self, roster_version: int, now: Callable[[], float] = time.time) -> None:
        self._roster_version = roster_version
        self._now = now
        self._num_active = 0

    async def answer(self, headers: Headers, body: AsyncIterator[bytes], send: Send) -> None:
        """Read the body to its end and answer.

        Args:
            headers: of the request.
            body: the request's pieces, within the gate's own limits of size and silence.
            send: takes the events of the answer.

        Raises:
            DoctorRefused: nothing of an answer was sent yet.
        """
        asked = _asked(headers)
        if self._num_active >= MAX_AT_ONCE:
            raise DoctorRefused(503, b"busy; try again\n")
        self._num_active += 1
        started = False
        try:
            async with asyncio.timeout(MAX_SECONDS):
                received = 0
                async for piece in body:
                    received += len(piece)
                started = True
                await self._send(received, min(asked, received), send)
        except TimeoutError as error:
            if not started:
                raise DoctorRefused(408, b"too slow\n") from error
        finally:
            self._num_active -= 1

    async def _send(self, received: int, filler: int, send: Send) -> None:
        facts = {"time": self._now(), "roster_version": self._roster_version, "received_bytes": received}
        text = json.dumps(facts).encode("ascii") + b"\n"
        length = str(len(text) + filler).encode("ascii")
        head = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": text, "more_body": True})
        piece = b" " * PIECE_BYTES
        for begin in range(0, filler, PIECE_BYTES):
            rest = min(PIECE_BYTES, filler - begin)
            await send({"type": "http.response.body", "body": piece[:rest], "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def parse_facts(start: bytes) -> int:
    """The roster's version in the beginning of an answer. Raises ValueError where it is none."""
    try:
        return int(json.loads(start.partition(b"\n")[0])["roster_version"])
    except (KeyError, TypeError) as error:
        raise ValueError("not an answer of the gate") from error


def _asked(headers: Headers) -> int:
    """How many bytes are asked for behind the facts; none where nothing is said. Raises DoctorRefused."""
    values = [value for name, value in headers if name == REPLY_BYTES]
    if not values:
        return 0
    if len(values) > 1 or not values[0].isdigit() or len(values[0]) > MAX_REPLY_DIGITS:
        raise DoctorRefused(400, b"collegium-reply-bytes is not a number\n")
    return int(values[0])
