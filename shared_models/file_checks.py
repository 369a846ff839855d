"""Checks that both ``doctor`` commands make of files and folders: who may read them, and whether the disk has room."""

import errno
import os
import pwd
import stat
import tempfile
from pathlib import Path

from shared_models.checkup import Outcome, Wrong, ok, warning

OTHERS = 0o077
OTHERS_WRITE = 0o022
TRIAL_BYTES = 1 << 20
MIB = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)


def read_private_file(path: Path, *, mend: str) -> bytes:
    """Return the content of a file that nobody else may read.

    Args:
        path: the file.
        mend: what to do where it is not there, as the rest of a sentence.

    Raises:
        Wrong: it is not there, cannot be read, or others may read it.
    """
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise Wrong(f"{path} is not there; {mend}") from error
    except OSError as error:
        raise Wrong(f"{path} cannot be read ({error.strerror}); {_who(path)}") from error
    if mode & OTHERS:
        raise Wrong(
            f"others may read {path} (mode {stat.S_IMODE(mode):04o}): find out who could, then run: chmod 600 {path}"
        )
    return content


def check_state_folder(state: Path) -> Outcome:
    """Check that the state folder belongs to this user alone, where it is there.

    Raises:
        Wrong: it is no folder, or others may look into it.
    """
    if not state.exists():
        return ok(f"{state} is not there yet; it is made with mode 0700 when it is needed")
    found = state.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise Wrong(f"{state} is not a folder; move it away, or name another as `state`")
    if found.st_mode & OTHERS:
        raise Wrong(
            f"others may look into {state} (mode {stat.S_IMODE(found.st_mode):04o}); mend it with: chmod 700 {state}"
        )
    if (other := _another_owner(found)) is not None:
        return warning(f"{state} belongs to {other}, not to you; run this command as the user that runs it")
    return ok(f"{state} is only this user's")


def check_own_folder(folder: Path, *, private: bool) -> Outcome:
    """Check the folder that holds the configuration and the keys.

    Args:
        folder: the folder.
        private: whether a warning is due where others may look into it.

    Raises:
        Wrong: others may put files into it in place of its own.
    """
    found = folder.stat()
    mode = stat.S_IMODE(found.st_mode)
    if mode & OTHERS_WRITE:
        raise Wrong(
            f"others may change what is in {folder} (mode {mode:04o}); mend it with: chmod 700 {folder}"
        )
    if (other := _another_owner(found)) is not None:
        return warning(f"{folder} belongs to {other}, not to you; run this command as the user that runs it")
    if private and mode & OTHERS:
        return warning(f"others may look into {folder} (mode {mode:04o}); better: chmod 700 {folder}")
    return ok(f"only this user may change what is in {folder}")


def check_disk(folder: Path, *, need_bytes: int, least_bytes: int) -> Outcome:
    """Check that there is room where *folder* is or will be, and that a file can really be written there.

    Args:
        folder: made later where it is not there; then the folder above counts.
        need_bytes: with less than this free, a warning.
        least_bytes: with less than this free, wrong.

    Raises:
        Wrong: nothing can be written, or too little is free.
    """
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    _write_trial(there)
    found = os.statvfs(there)
    free = found.f_bavail * found.f_frsize
    told = f"{_size(free)} free at {there}"
    if free < least_bytes:
        raise Wrong(f"only {told}; at least {_size(least_bytes)} must be: make room there")
    if free < need_bytes:
        return warning(f"only {told}; {_size(need_bytes)} are better: make room there")
    return ok(told)


def _write_trial(folder: Path) -> None:
    """Write a file of 1 MiB to the disk, and take it away again."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            file.write(os.urandom(TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in FULL:
            raise Wrong(f"the disk of {folder} is full ({error.strerror}): make room there") from error
        raise Wrong(f"nothing can be written in {folder} ({error.strerror}); {_who(folder)}") from error


def _another_owner(found: os.stat_result) -> str | None:
    return None if found.st_uid == os.geteuid() else _name_of(found.st_uid)


def _who(path: Path) -> str:
    """Who has to be asked about a path that cannot be used."""
    try:
        return f"it belongs to {_name_of(path.stat().st_uid)}, you are {_name_of(os.geteuid())}"
    except OSError:
        return "check the path, and as which user you run this"


def _name_of(user: int) -> str:
    try:
        return f'user "{pwd.getpwuid(user).pw_name}"'
    except KeyError:
        return f"user {user}"


def _size(number: int) -> str:
    mib = number / MIB
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"
