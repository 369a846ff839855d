"""Hospitals as several unix users on this machine: uids without accounts, folders of their own, code run as them."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
FIRST_UID = 61_000


class User:
    """A uid that has no account, with a group of the same number and a folder of its own."""

    def __init__(self, uid: int, folder: Path) -> None:
        self.uid, self.folder = uid, folder
        folder.mkdir(parents=True)
        (folder / "tmp").mkdir()
        self.owns(folder, 0o700)

    def owns(self, path: Path, mode: int | None = None) -> None:
        """Make everything below *path* this user's, and give *path* itself the mode."""
        for inner in (path, *path.rglob("*")):
            os.chown(inner, self.uid, self.uid)
        if mode is not None:
            path.chmod(mode)

    def start(self, command: Sequence[str], **options: object) -> "subprocess.Popen[bytes]":
        """Start a program as this user and nothing more: no other group, no variable of the test's own user."""
        python = interpreter()
        assert python is not None
        environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ},
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS), *_packages()]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder / "tmp"),
            "COLUMNS": "200",
        }
        return subprocess.Popen(
            [python, *command],
            cwd=self.folder,
            env=environment,
            user=self.uid,
            group=self.uid,
            extra_groups=[],
            umask=0o022,
            **options,  # type: ignore[call-overload]
        )

    def run(self, command: Sequence[str], seconds: float = 120.0) -> str:
        """Run a program as this user to its end. Returns what it printed; anything but status 0 fails the test."""
        process = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            said, _ = process.communicate(timeout=seconds)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, said.decode()
        return said.decode()

    def tries(self, **attempts: Sequence[str | int]) -> dict[str, str]:
        """Have this user's code try things; see `trying.py`. Returns "done", or the error's name, for each."""
        return dict(json.loads(self.run(["-I", str(TESTS / "trying.py"), json.dumps(attempts)])))


@cache
def interpreter() -> str | None:
    """A Python of this version that any user can run with the packages of this one, or None."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import grpc, client.agent'], check=True)"
    for found in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *_packages()])}
        try:
            done = subprocess.run(
                [found, "-c", program],
                user=FIRST_UID,
                group=FIRST_UID,
                extra_groups=[],
                cwd="/",
                env=environment,
                capture_output=True,
                check=False,
            )
        except OSError:
            continue
        if done.returncode == 0:
            return found
    return None


def why_not() -> str | None:
    """Why no code can be run as other users here, or None."""
    if os.geteuid() != 0:
        return "only root can run code as other users"
    if not sys.platform.startswith("linux"):
        return "the agent's door works on Linux only"
    if interpreter() is None:
        return "other users cannot run this Python, or cannot read its packages or this checkout"
    return None


def shared_folder() -> Path:
    """A folder that every user can pass; pytest's own are root's alone. `remove` it in the end."""
    folder = Path(tempfile.mkdtemp(prefix="collegium-users-", dir="/tmp"))
    folder.chmod(0o755)
    return folder


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def door_folder(path: Path, data: User, network: User) -> Path:
    """As the administrator makes it: install -d -o DATA -g NETWORK -m 2750 PATH."""
    path.mkdir()
    os.chown(path, data.uid, network.uid)
    path.chmod(0o2750)
    return path


def internet_sockets(pid: int) -> list[str]:
    """The lines of /proc/PID/net of every socket that this process holds and that is not a unix socket's."""
    held = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            held.add(target.removeprefix("socket:[").removesuffix("]"))
    tables = ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "icmp", "icmp6", "netlink", "packet")
    lines = [
        line
        for table in tables
        if (path := Path(f"/proc/{pid}/net/{table}")).exists()
        for line in path.read_text().splitlines()[1:]
    ]
    return [line for line in lines if held & set(line.split())]


def processes_of(uid: int) -> list[int]:
    """Process ids that run as this uid."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.stat().st_uid == uid:
                found.append(int(path.name))
        except OSError:
            continue
    return found


def _packages() -> list[str]:
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
