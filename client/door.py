"""The door to the agent: one socket, one user, one method behind it.

gRPC does not tell its Python servers which user is at the other end of a unix socket. The door asks the operating
system for the uid of each connection, which the kernel noted when it was made and no process can choose. It hangs up on
everybody but the one user that it was told, and hands the bytes of that user's connections on to the inner socket,
both ways, without looking at them.

Guarantees:
    * Nobody but that user reaches the inner socket through the door, whatever the file system allows.
    * At most `MAX_CONNECTIONS` at a time; one that reads slowly holds up no other, and no memory fills up for it.
    * What either side had sent when it ended its sending arrives whole at the other.
"""

import contextlib
import errno
import logging
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from client.door_place import DoorError, DoorPlace

MAX_CONNECTIONS = 8
PIECE_BYTES = 1 << 18
REFUSAL_SECONDS = 60.0
SHORT_OF_FILES_SECONDS = 0.2
_SHORT_OF_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = logging.getLogger("collegium.door")


class Door:
    """Lets one user's connections in.

    Args:
        place: the socket that is made, and the uid that is let in.
        inner: the socket behind the door, which is there when the door is opened.
    """

    def __init__(self, place: DoorPlace, inner: Path) -> None:
        self._place, self._inner = place, inner
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._refusals = _Refusals(place.uid)

    @contextmanager
    def opened(self, flush_seconds: float) -> Iterator[None]:
        """Open the door; afterwards close it, and give what is on its way out a few seconds.

        Raises:
            DoorError: the socket cannot be made, or another agent listens there.
        """
        listener = _listen(self._place)
        thread = threading.Thread(target=self._accept, args=(listener,), name="door", daemon=True)
        thread.start()
        log.info("ready at %s for uid %d", self._place.socket, self._place.uid)
        try:
            yield
        finally:
            self._place.socket.unlink(missing_ok=True)
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            listener.close()
            self._end(flush_seconds)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except (ConnectionAbortedError, InterruptedError):
                continue
            except OSError as error:
                if error.errno in _SHORT_OF_FILES:
                    log.error("no connection can be let in: %s", error.strerror)  # noqa: TRY400 - nothing to trace
                    time.sleep(SHORT_OF_FILES_SECONDS)
                    continue
                return  # the door is closed
            try:
                self._let_in(connection)
            except OSError as error:
                log.error("a connection cannot be let in: %s", error.strerror)  # noqa: TRY400 - nothing to trace
                connection.close()

    def _let_in(self, outer: socket.socket) -> None:
        pid, uid = peer_of(outer)
        if uid != self._place.uid:
            self._refusals.tell(uid, pid)
            outer.close()
            return
        with self._lock:
            full = len(self._connections) >= MAX_CONNECTIONS
        if full:
            log.warning("uid %d has %d connections open; one more is refused", uid, MAX_CONNECTIONS)
            outer.close()
            return
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            inner.connect(str(self._inner))
        except OSError:
            log.warning("the agent is ending; a connection is refused")
            inner.close()
            outer.close()
            return
        connection = _Connection(outer, inner, self._forget)
        with self._lock:
            self._connections.add(connection)
        connection.start()

    def _forget(self, connection: "_Connection") -> None:
        with self._lock:
            self._connections.discard(connection)

    def _end(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with self._lock:
            left = list(self._connections)
        for connection in left:
            connection.flush(max(0.0, deadline - time.monotonic()))
            connection.cut()


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """The process id and the uid of whoever connected this unix socket, as the kernel noted them then."""
    form = "iII"
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(form))
    pid, uid, _ = struct.unpack(form, raw)
    return pid, uid


class _Refusals:
    """Tells of those who are refused: each uid at once, and then at most once a minute with their number."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._told: dict[int, tuple[float, int]] = {}

    def tell(self, uid: int, pid: int) -> None:
        last, num = self._told.get(uid, (-REFUSAL_SECONDS, 0))
        now = time.monotonic()
        if now - last < REFUSAL_SECONDS:
            self._told[uid] = (last, num + 1)
            return
        self._told[uid] = (now, 0)
        more = f", and {num} of it since the last such line" if num else ""
        log.warning(
            "refused a connection of uid %d (process %d)%s: only uid %d is let in",
            uid,
            pid,
            more,
            self._expected,
        )


class _Connection:
    """One connection: two threads, each of which hands on what one side sends."""

    def __init__(
        self, outer: socket.socket, inner: socket.socket, forget: Callable[["_Connection"], None]
    ) -> None:
        self._sockets = outer, inner
        self._forget = forget
        self._requests = threading.Thread(target=self._carry, name="door-in", daemon=True)
        self._replies = threading.Thread(target=_hand_on, args=(inner, outer), name="door-out", daemon=True)

    def start(self) -> None:
        self._replies.start()
        self._requests.start()

    def _carry(self) -> None:
        _hand_on(*self._sockets)
        self._replies.join()
        for end in self._sockets:
            end.close()
        self._forget(self)

    def flush(self, seconds: float) -> None:
        """Wait for the replies that are on their way to be out."""
        self._replies.join(seconds)

    def cut(self) -> None:
        """End both directions."""
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _hand_on(source: socket.socket, target: socket.socket) -> None:
    """Hand on what *source* sends until it ends its sending or *target* is gone, and let each know of the other."""
    piece = memoryview(bytearray(PIECE_BYTES))
    with contextlib.suppress(OSError):
        while size := source.recv_into(piece):
            target.sendall(piece[:size])
    for end, direction in ((source, socket.SHUT_RD), (target, socket.SHUT_WR)):
        with contextlib.suppress(OSError):
            end.shutdown(direction)


def _listen(place: DoorPlace) -> socket.socket:
    """The door's socket: 0660 with its folder's group, never open to others even for a moment."""
    if not hasattr(socket, "SO_PEERCRED"):
        raise DoorError("the agent can tell who connects to it on Linux only; run the site there")
    path = place.socket
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
        if path.stat().st_gid != (group := path.parent.stat().st_gid):
            os.chown(path, -1, group)
        path.chmod(0o660)
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise DoorError(
            f"{path}: the agent's socket cannot be made ({error.strerror}); its folder has to be mode 2750, with "
            "the group of the network user"
        ) from error
    finally:
        os.umask(mask)
    return listener


def _clear(path: Path) -> None:
    """Remove the socket of an agent that is no more."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise DoorError(f"{path}: is no socket; choose another path for the agent's, or remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        try:
            trial.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise DoorError(f"{path}: another agent listens here; end it first, or choose another path")
