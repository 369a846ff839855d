"""Decoding in a process of its own: a file that crashes, hangs or floods a decoder costs that file only."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np

from client.decoding_limits import Limits
from client.decoding_process import IMAGE, LENGTH, READY, UNUSABLE, received
from client.dicom_file import Unusable
from client.preparation import Plane
from client.reasons import Reason
from shared_models.processes import python_module
from shared_models.study import Image
from shared_models.visible_text import visible

_START_SECONDS = 60.0
_GRACE_SECONDS = 10.0
_MAX_DETAIL = 200
_REASONS = {reason.code: reason for reason in Reason}
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG", "LC_ALL", "TZ", "PYTHONPATH")


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

    def prepare(self, path: Path, image: Image) -> tuple[Plane, bool]:
        """Read, decode and prepare one file.

        Args:
            path: the file.
            image: what the study wants.

        Returns:
            What `client.preparation.prepare` makes of it, and whether the file says how it is to be shown.

        Raises:
            Unusable: with the reason; decoder-crashed, too-slow and too-much-memory are those of the process.
            RuntimeError: the process does not start.
        """
        connection = self._ready()
        request = json.dumps({"path": str(path.absolute()), "image": image.model_dump_json()}).encode()
        connection.settimeout(self.limits.clock_seconds + _GRACE_SECONDS)
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
            raise Unusable(*self._why_it_ended())
        return self._taken(reply, image)

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
        limits = self.limits
        numbers = (theirs.fileno(), limits.memory_bytes, limits.processor_seconds, limits.clock_seconds)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        with theirs:
            self._process = subprocess.Popen(
                [*self._program, *(str(number) for number in numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # decoders complain there by quoting
                env={**environment, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                pass_fds=(theirs.fileno(),),
                process_group=0,  # Ctrl-C is for us
            )
        self.num_starts += 1
        ours.settimeout(_START_SECONDS)
        try:
            greeting = received(ours)
        except OSError:
            greeting = None
        if greeting != READY:
            ours.close()
            self._end()
            raise RuntimeError(
                f"the process that decodes images did not start; try: {' '.join(self._program)} 0 0 0 0"
            )
        return ours

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

    def _why_it_ended(self) -> tuple[Reason, str]:
        """The process closed the connection without an answer."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
        status = self._end()
        if status is None or status >= 0:
            return Reason.DECODER_CRASHED, f"(exit status {status})"
        name = signal.Signals(-status).name
        if -status in (signal.SIGXCPU, signal.SIGALRM):
            limit = (
                f"{self.limits.processor_seconds} s of computing"
                if -status == signal.SIGXCPU
                else f"{self.limits.clock_seconds} s"
            )
            return Reason.TOO_SLOW, f"More than {limit}."
        if -status == signal.SIGKILL:  # not by us: the system was short of memory
            return Reason.TOO_MUCH_MEMORY, f"({name})"
        return Reason.DECODER_CRASHED, f"({name})"

    def _taken(self, reply: bytes, image: Image) -> tuple[Plane, bool]:
        """Check what the process sent. Raises Unusable."""
        kind, content = reply[:1], reply[1:]
        shape = (image.channels, image.rows, image.columns)
        if kind == IMAGE and len(content) == 1 + 4 * int(np.prod(shape)):
            array = np.frombuffer(content, dtype="<f4", offset=1).reshape(shape).astype(np.float32)
            if np.isfinite(array).all() and array.min() >= 0.0 and array.max() <= 1.0:
                return array, content[:1] != b"\0"
        elif kind == UNUSABLE:
            try:
                told = json.loads(content)
                reason, detail = _REASONS[told["reason"]], str(told["detail"])
            except (ValueError, LookupError, TypeError):
                pass
            else:
                raise Unusable(reason, visible(detail[:_MAX_DETAIL]))
        self._end()
        raise Unusable(Reason.DECODER_CRASHED, "(an answer that cannot be)")
