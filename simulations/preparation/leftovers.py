"""Clearing away an earlier preparation, and nothing else."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from simulations.preparation.dicom_writer import IMPLEMENTATION, VERSION_NAME

_IMAGE = re.compile(r"[^/]+/images/[^/]+/[0-9]+\.dcm")
_MASK = re.compile(r"[^/]+/masks/[^/]+/[0-9]+\.(dcm|png)")
_LABELS = re.compile(r"[^/]+/labels\.csv")


def survey(out: Path, *, keep: frozenset[str]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Tell our files below *out* from others.

    Args:
        out: a folder with an earlier preparation.
        keep: names of files directly in *out* that belong to neither.

    Returns:
        Our files, and foreign ones. Ours are DICOM files in their place whose Implementation Class UID
        (0002,0012) is ours, PNGs that say that we wrote them, and labels files; links and everything else are foreign.
    """
    ours: list[Path] = []
    foreign: list[Path] = []
    for path in _files(out):
        if path.parent == out and path.name in keep:
            continue
        (ours if _is_ours(path, path.relative_to(out).as_posix()) else foreign).append(path)
    return tuple(ours), tuple(foreign)


def remove(out: Path, files: tuple[Path, ...]) -> None:
    """Remove *files* and the folders below *out* that this leaves empty."""
    folders = {parent for path in files for parent in path.parents if out in parent.parents}
    for path in files:
        path.unlink()
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def _files(out: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(out):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from (Path(folder) / name for name in sorted([*names, *links]))


def _is_ours(path: Path, place: str) -> bool:
    if path.is_symlink():
        return False
    if _LABELS.fullmatch(place):
        with path.open("rb") as file:
            return file.read(10) == b"PatientID,"
    if _IMAGE.fullmatch(place) or _MASK.fullmatch(place):
        ours = VERSION_NAME if path.suffix == ".png" else IMPLEMENTATION
        with path.open("rb") as file:
            return ours.encode("ascii") in file.read(600) or path.stat().st_size == 0
    return False
