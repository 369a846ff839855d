"""DICOMDIR: the table of contents of an export (PS3.3 annex F, PS3.10 section 8).

All files below the images folder are read whether a DICOMDIR names them or not. It tells one thing more: which files
should be there and are not, because an export was copied in part.
"""

import io
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import MediaStorageDirectoryStorage

from client.dicom_file import BoundedReader, Unusable, file_meta, guarded, opened
from client.reasons import Reason

NAME = "DICOMDIR"
LONGEST_BYTES = 128 << 20
_RECORDS = 0x00041220  # Directory Record Sequence
_FILE_ID = Tag(0x0004, 0x1500)  # Referenced File ID
_ITEM, _UNDEFINED = 0xFFFEE000, 0xFFFFFFFF
_COMPONENT = re.compile(
    r"[A-Za-z0-9_ .-]{1,64}"
)  # PS3.10 section 8.2 allows 8 of A-Z, 0-9, _; exports use more


def is_dicomdir(path: Path) -> bool:
    """Whether a file is a DICOMDIR, by its name (PS3.10 section 8.6) and its header."""
    if path.name.upper() != NAME:
        return False
    try:
        with opened(path) as file, guarded(Reason.BROKEN_HEADER):
            return bool(file_meta(file).get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage)
    except Unusable:
        return False


def referenced_files(path: Path) -> tuple[PurePosixPath, ...]:
    """The files that a DICOMDIR names, relative to its own folder, each once, in its order.

    Raises:
        Unusable: it is too large, cannot be parsed, or names a file outside its folder.
    """
    with opened(path) as file:
        if file.num_bytes > LONGEST_BYTES:
            raise Unusable(Reason.TOO_LARGE, f"It has more than {LONGEST_BYTES >> 20} MiB.")
        with guarded(Reason.BROKEN_HEADER):
            found: dict[PurePosixPath, None] = {}
            for record in _records(file):
                value = record.get("ReferencedFileID")
                if not value:
                    continue
                parts = [str(part) for part in value] if isinstance(value, MultiValue) else [str(value)]
                if not all(_COMPONENT.fullmatch(part) and part.strip(".") for part in parts):
                    raise Unusable(
                        Reason.BAD_ATTRIBUTE, "A Referenced File ID (0004,1500) is no path below it."
                    )
                found[PurePosixPath(*parts)] = None
    return tuple(found)


def _records(file: BoundedReader) -> Iterator[Dataset]:
    """The records, one by one, of each only its Referenced File ID: all together take a hundred times their bytes.

    Source:
        DICOM PS3.10 section 8.6 (Explicit VR Little Endian), PS3.5 section 7.5 (items).
    """
    file_meta(file)
    file.reading_header = True
    read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >= _RECORDS)
    file.reading_header = False
    if file.peek(1) == b"":  # no record at all
        return
    _, _, vr, _, num_bytes = struct.unpack("<HH2sHI", file.read(12))
    end = file.num_bytes if num_bytes == _UNDEFINED else file.tell() + num_bytes
    while vr == b"SQ" and file.tell() < end:
        group, element, num_bytes = struct.unpack("<HHI", file.read(8))
        if group << 16 | element != _ITEM:
            return
        item = file if num_bytes == _UNDEFINED else io.BytesIO(file.read(num_bytes))
        yield read_dataset(item, False, True, specific_tags=[_FILE_ID], at_top_level=False)


def missing_files(dicomdir: Path, folder: Path, there: Iterable[str]) -> tuple[str, ...]:
    """Paths of files that a DICOMDIR names and that are not *there*; upper and lower case do not matter.

    Args:
        dicomdir: the DICOMDIR, below *folder*.
        folder: the images folder.
        there: paths of all files, relative to *folder*.

    Raises:
        Unusable: as `referenced_files`.
    """
    known = {path.lower() for path in there}
    above = PurePosixPath(dicomdir.parent.relative_to(folder).as_posix())
    named = [(above / path).as_posix() for path in referenced_files(dicomdir)]
    return tuple(path for path in named if path.lower() not in known)
