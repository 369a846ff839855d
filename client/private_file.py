"""Files of the site's state that only its own user may read, written whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


def create_private_file(path: Path, data: bytes) -> bool:
    """Create *path* with mode 0600 unless it is there already.

    Guarantees: a reader sees the whole of *data* or no file; of two processes that create it, one wins.

    Returns:
        Whether this call created the file.

    Raises:
        OSError: the folder cannot be written.
    """
    temporary = _write_beside(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _sync_folder(path.parent)
    return True


def replace_private_file(path: Path, data: bytes) -> None:
    """Put *data* at *path* with mode 0600, in place of whatever was there, in one step. Raises OSError."""
    temporary = _write_beside(path, data)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink()
        raise
    _sync_folder(path.parent)


@contextmanager
def private_text(path: Path) -> Iterator[TextIO]:
    """Write *path* piece by piece, UTF-8, mode 0600. It is in its place once the context ended, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    temporary, descriptor = _created_beside(path)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise
    _sync_folder(path.parent)


def _created_beside(path: Path) -> tuple[Path, int]:
    """A new file in the same folder, and its descriptor."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    return temporary, os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def _write_beside(path: Path, data: bytes) -> Path:
    temporary, descriptor = _created_beside(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink()
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    """Make the folder's new entry survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
