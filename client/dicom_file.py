"""Reading the header of one DICOM file that may be odd, broken or hostile.

Only the attributes in `HEADER_KEYWORDS` are kept; the patient's name is never among them (`client.person` reads it, to
hash it). Whatever goes wrong becomes one `Unusable` with a named reason, whose text never holds a value of an
identifying attribute.
"""

import codecs
import io
import logging
import math
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL.Image import DecompressionBombWarning
from pydicom import dcmread
from pydicom.charset import python_encoding
from pydicom.config import IGNORE
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from client.identifiers import normalised
from client.inflated import MAX_RATIO, InflatedFile
from client.reasons import Reason

# pydicom's log lines quote values, patients' names among them: none may reach any handler.
logging.getLogger("pydicom").addFilter(lambda record: False)
logging.getLogger("pydicom").propagate = False  # for its children

IDENTIFIER_KEYWORDS = (
    "PatientID",
    "StudyInstanceUID",
    "AccessionNumber",
    "SOPInstanceUID",
    "SeriesInstanceUID",
)
_PALETTE_KEYWORDS = tuple(
    f"{colour}PaletteColorLookupTable{part}"
    for part in ("Descriptor", "Data")
    for colour in ("Red", "Green", "Blue")
) + tuple(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue"))
# fmt: off
_PIXEL_KEYWORDS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleIntercept", "RescaleSlope",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "ModalityLUTSequence", "VOILUTSequence",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
)
_GEOMETRY_KEYWORDS = (
    "ImageType", "RescaleType", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing",
    "PixelAspectRatio", "PatientOrientation", "ImageOrientationPatient", "ImagePositionPatient",
)
# fmt: on
FRAME_KEYWORDS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_FACT_KEYWORDS = (
    "Manufacturer",
    "ManufacturerModelName",
    "ViewPosition",
    "BodyPartExamined",
    "BurnedInAnnotation",
)
HEADER_KEYWORDS = (
    *IDENTIFIER_KEYWORDS,
    "SOPClassUID",
    "Modality",
    *_FACT_KEYWORDS,
    *_PIXEL_KEYWORDS,
    *_PALETTE_KEYWORDS,
    *_GEOMETRY_KEYWORDS,
)
_CODECS = frozenset(codecs.lookup(name).name for name in (*python_encoding.values(), "ascii"))
MAX_HEADER_BYTES = 64 * 2**20
MAX_INFLATED_BYTES = 512 * 2**20
MAX_HEADER_READS = 200_000
"""Each data element and each item takes one read at least; a parsed one takes about a thousand bytes of memory."""


class Unusable(Exception):
    """A file cannot be used. Holds the reason and a detail of attribute names and numbers, no identifiers."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.sentence} {detail}".rstrip())
        self.reason = reason
        self.detail = detail


@contextmanager
def guarded(reason: Reason) -> Iterator[None]:
    """Turn whatever a parser or decoder raises on foreign bytes into `Unusable` with *reason*.

    Warnings of the parser are dropped and causes are cut off (``from None``): both may quote values of the
    file. An image whose stream is far larger than its header says is an error, not a warning. Warnings are a matter
    of the whole process, so two threads must not read files at the same time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", DecompressionBombWarning)
        try:
            yield
        except Unusable:
            raise
        except RecursionError:
            raise Unusable(Reason.TOO_DEEP) from None
        except MemoryError:
            raise Unusable(Reason.TOO_MUCH_MEMORY) from None
        except (
            OSError
        ) as error:  # the parsers raise it too, but without a number, and in place of what came before
            if first := _first(error):
                raise first from None
            found = reason if error.errno is None else Reason.NOT_READABLE
            raise Unusable(found, f"({error.strerror or type(error).__name__})") from None
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - hostile bytes make parsers raise anything, Rust's panic too
            raise Unusable(reason, f"({type(error).__name__})") from None


def _first(error: BaseException | None) -> Unusable | None:
    """What a parser met before it raised something else: the end of the stack, or of what a header may have."""
    while error is not None:
        if isinstance(error, RecursionError):
            return Unusable(Reason.TOO_DEEP)
        if isinstance(error, Unusable):
            return error
        error = error.__cause__ or error.__context__
    return None


class BoundedReader(io.BufferedReader):
    """A file that never reserves more memory for a value than the file has bytes left.

    A header may claim a value of 4 GB; a plain read would reserve that much before it meets the end. While
    `reading_header` is on, no more bytes and no more pieces are read than a header may have.

    Args:
        raw: the file.
        num_bytes: how many it has at most.
    """

    def __init__(self, raw: io.RawIOBase, num_bytes: int) -> None:
        super().__init__(raw)
        self.num_bytes = num_bytes
        self.reading_header = False
        self._header_bytes = self._header_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most *size* bytes and at most to the end. Raises Unusable where the header is too large."""
        left = max(self.num_bytes - self.tell(), 0)
        found = super().read(left if size is None or size < 0 else min(size, left))
        if self.reading_header:
            self._header_bytes += len(found)
            self._header_reads += 1
            if self._header_bytes > MAX_HEADER_BYTES or self._header_reads > MAX_HEADER_READS:
                raise Unusable(Reason.TOO_LARGE, "Its header is larger than any header is.")
        return found


@contextmanager
def opened(path: Path, *, max_inflated: int = MAX_HEADER_BYTES) -> Iterator[BoundedReader]:
    """Open a regular file; a deflated one reads as if it were not, up to *max_inflated* bytes.

    Raises:
        Unusable: not a file, not readable.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            raise Unusable(Reason.NOT_READABLE, "It is a folder that cannot be listed.")
        if not path.is_file():  # follows links; a pipe would block for ever
            raise Unusable(Reason.NOT_A_FILE)
        raw = io.FileIO(path, "rb")
        num_bytes = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        file = BoundedReader(raw, num_bytes)
    except OSError as error:
        raise Unusable(Reason.NOT_READABLE, f"({error.strerror})") from None
    with file, _inflated(file, max_inflated) as plain:
        yield plain


@contextmanager
def _inflated(file: BoundedReader, limit: int) -> Iterator[BoundedReader]:
    """The file itself, or what it is when inflated, whose file meta information then says that it is not deflated."""
    is_deflated = False
    with suppress(Unusable), guarded(Reason.BROKEN_HEADER):  # `read_header` says what is wrong
        if file.read(132)[128:] == b"DICM":
            is_deflated = file_meta(file).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    if not is_deflated:
        file.seek(0)
        yield file
        return
    end = file.tell()
    file.seek(0)
    deflated = DeflatedExplicitVRLittleEndian.encode()
    # Everywhere: it may stand in the preamble too, and pydicom itself inflates without a limit where it is left.
    before = file.read(end).replace(deflated, ExplicitVRLittleEndian.encode().ljust(len(deflated), b"\0"))
    most = min((file.num_bytes - end) * MAX_RATIO, MAX_INFLATED_BYTES - end)
    with BoundedReader(InflatedFile(file, before, limit), end + most) as plain:
        yield plain


def file_meta(file: BoundedReader) -> Dataset:
    """The file meta information; leaves the file behind it."""
    file.seek(132)
    file.reading_header = True
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_after_file_meta)
    file.reading_header = False
    return meta


def read_header(
    file: BoundedReader, *, with_frames: bool = False, besides: Collection[str] = ()
) -> FileDataset:
    """Read the attributes in `HEADER_KEYWORDS`, not the pixel data.

    Args:
        file: the file, open at its start; left at its pixel data element, or at its end if there is none.
        with_frames: read `FRAME_KEYWORDS` too. They may hold anything about frames and patients: only what
            `client.frames` takes of them is to be kept.
        besides: keywords of further attributes, which the caller is to remove.

    Raises:
        Unusable: not DICOM, broken header, nested too deeply, or larger than any header is.

    Source:
        DICOM PS3.10 section 7.1 (file meta information), PS3.5 section 7 (data elements).
    """
    with guarded(Reason.NOT_READABLE):
        start = file.read(132)
        file.seek(0)
    if start[128:] != b"DICM":
        raise Unusable(Reason.NOT_DICOM)
    keywords = (*HEADER_KEYWORDS, *(FRAME_KEYWORDS if with_frames else ()), *besides)
    tags = [tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None]
    with guarded(Reason.BROKEN_HEADER):
        if not file_meta(file).get("TransferSyntaxUID"):
            raise Unusable(Reason.BROKEN_HEADER, "Transfer Syntax UID (0002,0010) is missing.")
        file.seek(0)
        file.reading_header = True
        header = dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
    file.reading_header = False
    check_character_set(header)
    return header


def check_character_set(dataset: Dataset) -> None:
    """Refuse a data set whose text pydicom would decode by a codec of Python that is none of DICOM's.

    Some of them make text that cannot be encoded again (``utf_7``), or take minutes (``punycode``).

    Raises:
        Unusable: Specific Character Set (0008,0005) names such a codec.

    Source:
        DICOM PS3.3 section C.12.1.1.2.
    """
    with guarded(Reason.BAD_ATTRIBUTE):
        names = dataset.get("SpecificCharacterSet") or ()
        for name in (names,) if isinstance(names, str) else names:
            with suppress(LookupError):  # an unknown name is read as the default
                if codecs.lookup(name).name not in _CODECS:
                    raise Unusable(
                        Reason.BAD_ATTRIBUTE, "Specific Character Set (0008,0005) is none of DICOM's."
                    )


def _after_file_meta(tag: int, vr: str | None, length: int) -> bool:
    return tag >> 16 != 0x0002


@dataclass(frozen=True, slots=True, kw_only=True)
class Identifiers:
    """Whose image it is. Empty where the file does not say. Stays in memory; only pseudonyms are written."""

    PatientID: str = field(repr=False)
    StudyInstanceUID: str = field(repr=False)
    AccessionNumber: str = field(repr=False)
    SOPInstanceUID: str = field(repr=False)
    SeriesInstanceUID: str = field(default="", repr=False)

    def value(self, keyword: str) -> str:
        """Return the identifier with this DICOM keyword."""
        return str(getattr(self, keyword))

    def require(self, *keywords: str) -> None:
        """Raise Unusable if one of these identifiers is empty."""
        if missing := [keyword for keyword in keywords if not self.value(keyword)]:
            raise Unusable(Reason.MISSING_IDENTIFIER, f"{', '.join(missing)} is empty.")


def identifiers_of(header: FileDataset) -> Identifiers:
    """Return the identifiers, without padding. Raises Unusable where one cannot be parsed."""
    return Identifiers(**{keyword: normalised(text_of(header, keyword)) for keyword in IDENTIFIER_KEYWORDS})


def text_of(header: FileDataset, keyword: str) -> str:
    """Return an attribute as text, without padding; empty where it is missing. Raises Unusable."""
    with guarded(Reason.BAD_ATTRIBUTE):
        value = header.get(keyword)
        if isinstance(value, MultiValue):
            return "\\".join(str(part) for part in value).strip(" \0")
        return "" if value is None else str(value).strip(" \0")


def code_of(header: FileDataset, keyword: str) -> str:
    """Return an attribute of value representation CS; ``?`` where its value is no code. Raises Unusable.

    Whatever this returns may stand in a detail: free text, which could name a patient, does not pass.
    """
    value = text_of(header, keyword)
    return value if re.fullmatch(r"[A-Z0-9_]{0,16}", value) else "?"


def uid_of(text: str) -> UID:
    """Return *text* as a UID, without pydicom's warning, which quotes it, where it is none."""
    return UID(text, IGNORE)


def name_of(uid: UID) -> str:
    """Return the registered name of a UID; an unregistered one, which may be any text, is not shown."""
    return uid.name if uid.name != uid else "unregistered UID"


def number_of(header: FileDataset, keyword: str) -> float | None:
    """Return a numeric attribute, its first value if there are several, None where it is missing or empty.

    Raises:
        Unusable: not a finite number.
    """
    with guarded(Reason.BAD_ATTRIBUTE):
        value = header.get(keyword)
        if isinstance(value, MultiValue):
            value = value[0] if value else None
        if value is None or value == "":
            return None
        number = float(value)
    if not math.isfinite(number):
        raise Unusable(Reason.BAD_ATTRIBUTE, f"{keyword} is not a finite number.")
    return number


def integer_of(header: FileDataset, keyword: str, *, low: int, high: int, default: int | None = None) -> int:
    """Return an integer attribute in [*low*, *high*]. Raises Unusable where it is missing or outside."""
    number = number_of(header, keyword)
    if number is None and default is not None:
        return default
    if number is None:
        raise Unusable(Reason.BAD_ATTRIBUTE, f"{keyword} is missing.")
    if number != int(number) or not low <= number <= high:
        raise Unusable(Reason.BAD_ATTRIBUTE, f"{keyword} is not an integer in {low}..{high}.")
    return int(number)
