"""Child processes that end in order, and that never outlive their parent.

Both launchers, the server's and the site's, start their parts with `Child`. The parent holds the other end of
each child's standard input; a child calls `follow_parent` and ends itself when that end closes, which the
operating system does even when the parent is killed with ``kill -9``.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from shared_models.passphrase import VARIABLES as PASSPHRASE_VARIABLES

LOG_BYTES_KEPT = 5_000_000
STOP_SECONDS = 8.0

# Flower reports its use and looks for updates unless told otherwise; a consortium's machines do neither.
FLOWER_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def flower_environment(home: Path) -> dict[str, str]:
    """The variables that a Flower process gets: quiet, and with a home of its own below our state folder."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {**FLOWER_QUIET, "HOME": str(home), "FLWR_HOME": str(home / ".flwr")}


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules, whatever the current folder holds."""
    return [sys.executable, "-P", "-m", module, *arguments]


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def private_folder(path: Path) -> Path:
    """Make *path* a folder that only its owner can read, and return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def write_private(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Write *content* to *path*, readable by its owner only from the first byte on.

    Raises:
        FileExistsError: something is there already, and *replace* does not say that it may be lost.
    """
    if replace:
        path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def with_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables, with no proxy for the loopback interface: as every child process gets them."""
    before = environment.get("NO_PROXY", environment.get("no_proxy", ""))
    no_proxy = ",".join(dict.fromkeys([*filter(None, before.split(",")), "127.0.0.1", "localhost"]))
    return {**environment, "NO_PROXY": no_proxy, "no_proxy": no_proxy}


class Child:
    """One running child process, with its log and the pipe that ties its life to ours.

    Args:
        name: what it is called in messages.
        command: program and arguments.
        log: file that takes what it prints.
        environment: variables set for it on top of ours; Flower's own variables are never inherited, nor are those
            by which a passphrase is found.
        descriptors: open files that it inherits besides, under the same numbers.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        descriptors: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log = log
        self._log_start = _open_log(log)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=_environment(environment),
                pass_fds=descriptors,
                start_new_session=True,  # Ctrl-C reaches us only; we end the children in order
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ended(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> bool:
        """Wait at most *seconds* for it to end. Returns whether it did."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def terminate(self) -> None:
        """Ask it to end, without waiting for it."""
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Ask it to end; make it end after *seconds*."""
        self.terminate()
        if not self.wait(seconds):
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def said(self) -> str:
        """What it wrote to its log since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode("utf-8", "replace")


def follow_parent(seconds: float = STOP_SECONDS) -> None:
    """End this process, gently and then firmly, when the parent that started it is gone.

    To be called once, at the start of a child's main program.
    """

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()


@contextmanager
def signals_end() -> Iterator[None]:
    """Ctrl-C and SIGTERM alike raise KeyboardInterrupt inside; further ones do not disturb the ending."""

    def interrupt(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FLWR_") and name not in PASSPHRASE_VARIABLES
    }
    packages = str(Path(__file__).resolve().parent.parent)
    paths = [packages, *filter(None, inherited.get("PYTHONPATH", "").split(os.pathsep))]
    quiet = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return {**with_loopback(inherited), **quiet, **extra}


def _open_log(log: Path) -> int:
    """Make the log's folder, put a large old log aside, and return where new lines begin."""
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_BYTES_KEPT:
        log.replace(log.with_suffix(".old.log"))
    log.touch(mode=0o600)
    return log.stat().st_size
