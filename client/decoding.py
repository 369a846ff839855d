"""Decoding in a process of its own: what crashes, hangs or floods a decoder costs that file, or its series, only."""

import functools
import json
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np

from client.decoding_limits import Limits
from client.decoding_process import DIGEST, DRAWN_ON, HEADER, IMAGE, LENGTH, READY, UNUSABLE, received
from client.dicom_file import IDENTIFIER_KEYWORDS, Unusable
from client.file_facts import HeaderFacts, PixelFacts
from client.file_reading import Header, Prepared
from client.person import PERSON_KEYWORDS
from client.reasons import Reason
from client.structures import MaskWanted, present
from shared_models.processes import python_module
from shared_models.study import Image
from shared_models.visible_text import visible

_START_SECONDS = 60.0
_GRACE_SECONDS = 10.0
_MAX_DETAIL = 200
_MAX_IDENTIFIER = 10_000
_MAX_UID = 64
_REASONS = {reason.code: reason for reason in Reason}
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG", "LC_ALL", "TZ", "PYTHONPATH")


class DecoderDoesNotStart(Exception):
    """The process that decodes does not start, which is no file's fault."""


class DecodingWorker:
    """One process that prepares one file after the other.

    It starts with the first file, is used for all that follow, and is started anew after a file that ended it. A
    worker is for one thread; several workers may run side by side.

    What it sends is taken as from a stranger, because a file may have taken it over: an array of the study's shape
    with values in [0, 1], or the code of a known reason with a short text.

    Args:
        limits: what one file may take.
        program: the command that runs the process, without its arguments; tests give another.
    """

    def __init__(self, limits: Limits | None = None, program: Sequence[str] = ()) -> None:
        self.limits = limits or Limits()
        self.num_starts = 0
        self._program = tuple(program) or tuple(python_module("client.decoding_process"))
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def header(self, path: Path, image: Image) -> Header:
        """Read the header of one file, and check all that can be known before pixels are read.

        Raises:
            Unusable: it has no header that could be read; or the process ended while it read it.
            DecoderDoesNotStart: no file can be read.
        """
        kind, content = self._asked("header", [path], image)
        try:
            if kind == HEADER and (told := _header(content)) is not None:
                return told
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        raise self._impossible()

    def digest(self, path: Path, image: Image) -> bytes:
        """Return SHA-256 of the file's bytes. Raises as `header`."""
        kind, content = self._asked("digest", [path], image)
        if kind == DIGEST and len(content) == 32:
            return content
        raise self._impossible()

    def drawn_on(self, path: Path) -> tuple[str, ...]:
        """Return the UIDs of images and series that a DICOM SEG was drawn on; none of others. Raises as `header`."""
        kind, content = self._asked("drawn-on", [path], None)
        try:
            told = json.loads(content)
            if kind == DRAWN_ON and all(isinstance(uid, str) and len(uid) <= _MAX_UID for uid in told):
                "".join(told).encode("utf-8", "surrogateescape")
                return tuple(told)
        except (ValueError, TypeError, RecursionError):
            pass
        raise self._impossible()

    def prepare(self, path: Path, image: Image, mask: MaskWanted | None = None) -> Prepared:
        """Read, decode and prepare one file.

        Args:
            path: the file; quickest where its header was asked for last.
            image: what the study wants.
            mask: that of the image, where one is wanted.

        Returns:
            What `client.preparation.prepare` makes of it, the mask as one more channel, and what is known of it.

        Raises:
            Unusable: with the reason; decoder-crashed, too-slow and too-much-memory are those of the process.
            DecoderDoesNotStart: no file can be read.
        """
        return self._prepared("pixels", [path], image, mask)

    def prepare_series(self, paths: Sequence[Path], image: Image, mask: MaskWanted | None = None) -> Prepared:
        """Read, decode and prepare all files of one series as one volume.

        Args:
            paths: of its files, at least one.
            image: what the study wants; it has a depth.
            mask: that of the series, where one is wanted.

        Returns:
            What `client.series.prepare_series` makes of them.

        Raises:
            Unusable, DecoderDoesNotStart: as `prepare`.
        """
        return self._prepared("series", paths, image, mask)

    def interrupt(self) -> None:
        """Kill the process, from another thread: whoever waits for it gets an answer at once."""
        if (process := self._process) is not None:
            process.kill()

    def _prepared(self, ask: str, paths: Sequence[Path], image: Image, mask: MaskWanted | None) -> Prepared:
        kind, content = self._asked(ask, paths, image, mask)
        try:
            if kind == IMAGE and (prepared := _prepared(content, image, mask)) is not None:
                return prepared
        except (ValueError, LookupError, TypeError, struct.error, RecursionError):
            pass
        raise self._impossible()

    def _asked(
        self, ask: str, paths: Sequence[Path], image: Image | None, mask: MaskWanted | None = None
    ) -> tuple[bytes, bytes]:
        """Kind and content of the answer. Raises Unusable where it is a reason, or there is none."""
        connection = self._ready()
        wanted = {
            "ask": ask,
            "paths": [_named(path) for path in paths],
            "image": image and _json(image),
            "mask": mask and {"path": mask.path and _named(mask.path), "structures": mask.structures},
        }
        request = json.dumps(wanted).encode()
        limits = self.limits.of_series(len(paths)) if ask == "series" else self.limits
        connection.settimeout(limits.clock_seconds + _GRACE_SECONDS)
        try:
            connection.sendall(LENGTH.pack(len(request)) + request)
            reply = received(connection)
        except TimeoutError:
            self._end()
            raise Unusable(Reason.TOO_SLOW) from None
        except OSError:  # it ended before it had read the request
            reply = None
        except (
            BaseException
        ):  # an interrupt: an answer that comes later must not be taken for the next file's
            self._end()
            raise
        if reply is None:
            raise Unusable(*self._why_it_ended(limits))
        if reply[:1] == UNUSABLE:
            try:
                finding = _finding(json.loads(reply[1:]))
            except (ValueError, LookupError, TypeError, RecursionError):
                raise self._impossible() from None
            raise finding
        return reply[:1], reply[1:]

    def _impossible(self) -> Unusable:
        self._end()
        return Unusable(Reason.DECODER_CRASHED, "(an answer that cannot be)")

    def close(self) -> None:
        """End the process, if there is one."""
        self._end()

    def _ready(self) -> socket.socket:
        """The connection to a process that waits for a request."""
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._connection is None:
            self._connection = self._start()
        return self._connection

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = self._launched(theirs.fileno())
            self.num_starts += 1
            ours.settimeout(_START_SECONDS)
            greeting = received(ours)
        except OSError:
            greeting = None
        if greeting != READY:
            ours.close()
            self._end()
            raise DecoderDoesNotStart(
                "the process that decodes images did not start: a limit of memory or of processes on the site's user "
                f"may be too low; {' '.join(self._program)} 0 {2**31} 10 120 shows what is wrong"
            )
        return ours

    def _launched(self, descriptor: int) -> subprocess.Popen[bytes]:
        """Start the program with nothing of ours but one end of the connection."""
        limits = self.limits
        numbers = (descriptor, limits.memory_bytes, limits.processor_seconds, limits.clock_seconds)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return subprocess.Popen(
            [*self._program, *(str(number) for number in numbers)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # decoders complain there by quoting
            env={
                **environment,
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            pass_fds=(descriptor,),
            process_group=0,  # Ctrl-C is for us
        )

    def _end(self) -> int | None:
        """End the process, whatever it does; return its exit status."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        process, self._process = self._process, None
        if process is None:
            return None
        if process.poll() is None:
            process.kill()
        return process.wait()

    def _why_it_ended(self, limits: Limits) -> tuple[Reason, str]:
        """The process closed the connection without an answer; *limits* are those of what it was asked for."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
        status = self._end()
        if status is None or status >= 0:
            return Reason.DECODER_CRASHED, f"(exit status {status})"
        name = signal.Signals(-status).name
        if -status in (signal.SIGXCPU, signal.SIGALRM):
            limit = (
                f"{limits.processor_seconds} s of computing"
                if -status == signal.SIGXCPU
                else f"{limits.clock_seconds} s"
            )
            return Reason.TOO_SLOW, f"More than {limit}."
        if -status == signal.SIGKILL:  # not by us: the system was short of memory
            return Reason.TOO_MUCH_MEMORY, f"({name})"
        return Reason.DECODER_CRASHED, f"({name})"


@functools.lru_cache(maxsize=4)
def _json(image: Image) -> str:
    return image.model_dump_json()


def _named(path: Path) -> str:
    return os.fsencode(path.absolute()).hex()


def _finding(told: dict[str, object]) -> Unusable:
    """What the process says against a file. Raises LookupError where it is no reason."""
    return Unusable(_REASONS[str(told["reason"])], visible(str(told["detail"])[:_MAX_DETAIL]))


def _header(content: bytes) -> Header | None:
    """What the process says of a header; None, or an error, where it cannot be."""
    told = json.loads(content)
    identifiers = {keyword: told["identifiers"][keyword] for keyword in IDENTIFIER_KEYWORDS}
    person = {keyword: told["person"][keyword] for keyword in PERSON_KEYWORDS}
    values = (*identifiers.values(), *person.values())
    if not all(isinstance(value, str) and len(value) <= _MAX_IDENTIFIER for value in values):
        return None
    "".join(values).encode("utf-8", "surrogateescape")  # else no keyed hash can be made of them
    return Header(
        identifiers=identifiers,
        facts=HeaderFacts.model_validate(told["facts"], strict=False),
        finding=_finding(told) if "reason" in told else None,
        person=person,
    )


def _prepared(content: bytes, image: Image, mask: MaskWanted | None) -> Prepared | None:
    """What the process says of an image; None, or an error, where it cannot be."""
    shape, start = image.shape, LENGTH.size
    if mask is not None:
        shape = (image.channels + 1, *shape[1:])
    end = start + LENGTH.unpack(content[:start])[0]
    if len(content) != end + 4 * int(np.prod(shape)):
        return None
    told = json.loads(content[start:end])
    array = np.frombuffer(content, dtype="<f4", offset=end).reshape(shape).astype(np.float32)
    levels = array[: image.channels]
    if not (levels.min() >= 0.0 and levels.max() <= 1.0):  # false where a value is NaN
        return None
    facts = PixelFacts.model_validate(told["facts"])
    if facts.present != (() if mask is None else present(array[image.channels :], mask.structures)):
        return None
    if mask is not None and not np.isin(array[image.channels :], range(len(mask.structures) + 1)).all():
        return None
    return Prepared(plane=array, has_window=told["has_window"] is True, facts=facts)
