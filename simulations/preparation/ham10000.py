"""HAM10000: dermatoscopy from four sources, which become four hospitals; a lesion stands for the patient.

Source: Tschandl, Rosendahl and Kittler, "The HAM10000 dataset" (Scientific Data, 2018).
"""

import csv
import hashlib
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from simulations.preparation.cases import Case, Caseload, Image, Mask, SourceError
from simulations.preparation.dicom_writer import Header, JpegPicture, Subject
from simulations.preparation.mask_writer import png_bytes
from simulations.preparation.sources import HamSource, data_folder

METADATA_NAME = "HAM10000_metadata_with_site.csv"
ARCHIVE_NAME = "images.zip"
MASKS_NAME = "masks_200x150.zip"
_MASK_ENDING = "_segmentation.png"
_INSIDE_ABOVE = 127
LABEL_COLUMN = "dx"
LABELS = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
_COLUMNS = ("lesion_id", "image_id", "dx", "age", "sex", "dataset")
_HOSPITALS = {
    "vidir_molemax": "vidir-molemax",
    "vidir_modern": "vidir-modern",
    "rosendahl": "rosendahl",
    "vienna_dias": "vienna-dias",
}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # becomes a folder name and a PatientID
_SEXES = {"male": "M", "female": "F", "unknown": "", "": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Photograph:
    """One row of the metadata."""

    lesion: str
    image: str
    label: str
    hospital: str
    sex: str
    age_years: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where the images, the metadata and, where they are wanted, the masks are."""

    archive: Path
    metadata: Path
    masks: Path | None

    @property
    def all(self) -> tuple[Path, ...]:
        """In a fixed order."""
        return (self.archive, self.metadata, *([] if self.masks is None else [self.masks]))


def locate_ham10000(source: HamSource) -> Files:
    """The files of *source*. Raises SourceError where one is missing."""
    folder = source.folder if source.folder is not None else data_folder("ham10000")
    found = Files(
        archive=folder / ARCHIVE_NAME,
        metadata=folder / METADATA_NAME,
        masks=folder / MASKS_NAME if source.masks else None,
    )
    for path in found.all:
        if not path.is_file():
            raise SourceError(
                f"{path}: is missing; HAM10000 needs {' and '.join(one.name for one in found.all)} in one folder"
            )
    return found


@contextmanager
def ham10000_caseloads(source: HamSource, files: Files) -> Iterator[tuple[Caseload, ...]]:
    """The four hospitals, while the archives are open: pictures and masks are read from them one by one.

    Raises:
        SourceError: a column, a value or a member of an archive is missing or wrong.
    """
    photographs = read_metadata(files.metadata)
    with ExitStack() as opened:
        images, members = _opened(opened, files.archive, photographs, (".jpg", ".jpeg"))
        pictures = _reader(images, members)
        masks = None
        if files.masks is not None:
            masks = _mask_reader(*_opened(opened, files.masks, photographs, (_MASK_ENDING,)))
        yield _caseloads(source, photographs, pictures, masks)


def _opened(
    opened: ExitStack, archive: Path, photographs: Sequence[Photograph], endings: tuple[str, ...]
) -> tuple[zipfile.ZipFile, Mapping[str, str]]:
    """An archive, and its member for each photograph by the image's name."""
    try:
        packed = opened.enter_context(zipfile.ZipFile(archive))
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{archive}: cannot be read as a zip archive ({error}); fetch it again") from error
    members = {
        Path(name).name[: -len(ending)]: name
        for name in packed.namelist()
        for ending in endings
        if name.lower().endswith(ending)
    }
    if missing := [shot.image for shot in photographs if shot.image not in members]:
        raise SourceError(
            f"{archive}: lacks {len(missing)} of {len(photographs)} images that {METADATA_NAME} lists, "
            f"the first is {missing[0]}{endings[0]}; fetch the archive again"
        )
    return packed, members


def read_metadata(path: Path) -> tuple[Photograph, ...]:
    """Read the metadata file. Raises SourceError with the line of the first thing that is wrong."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if missing := [name for name in _COLUMNS if name not in (rows.fieldnames or ())]:
                raise SourceError(
                    f"{path}: has no column {', '.join(missing)}; it needs {', '.join(_COLUMNS)}"
                )
            photographs = tuple(_photograph(path, row, rows.line_num) for row in rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as CSV ({error})") from error
    labels: dict[str, str] = {}
    for shot in photographs:
        if labels.setdefault(shot.lesion, shot.label) != shot.label:
            raise SourceError(f"{path}: lesion {shot.lesion} is both {labels[shot.lesion]} and {shot.label}")
    if not photographs:
        raise SourceError(f"{path}: lists no images")
    return photographs


def _photograph(path: Path, row: Mapping[str, str | None], line: int) -> Photograph:
    values = {name: (row[name] or "").strip() for name in _COLUMNS}
    checks = (("dx", LABELS), ("dataset", tuple(_HOSPITALS)), ("sex", tuple(_SEXES)))
    for column, allowed in checks:
        if values[column] not in allowed:
            raise SourceError(
                f"{path}, line {line}: {column} is {values[column]!r}; must be one of {', '.join(allowed)}"
            )
    for column in ("lesion_id", "image_id"):
        if not _NAME.fullmatch(values[column]):
            raise SourceError(
                f"{path}, line {line}: {column} is {values[column]!r}; must be letters, digits, _ or -"
            )
    return Photograph(
        lesion=values["lesion_id"],
        image=values["image_id"],
        label=values["dx"],
        hospital=_HOSPITALS[values["dataset"]],
        sex=_SEXES[values["sex"]],
        age_years=_age(path, values["age"], line),
    )


def _age(path: Path, text: str, line: int) -> int | None:
    if not text:
        return None
    try:
        age = float(text)
    except ValueError as error:
        raise SourceError(
            f"{path}, line {line}: age is {text!r}; must be a number of years, or empty"
        ) from error
    if not 0 <= age <= 150:
        raise SourceError(f"{path}, line {line}: age is {text}; must lie in 0..150")
    return int(age)


def role_of(lesion: str) -> str:
    """The role of a lesion: a hash of its name, so that the nine lesions seen at two sources have one role."""
    position = (
        int.from_bytes(hashlib.sha256(f"collegium-ham10000/{lesion}".encode()).digest()[:8], "big") / 2**64
    )
    return "test" if position < 0.2 else "validation" if position < 0.35 else "train"


def _caseloads(
    source: HamSource,
    photographs: tuple[Photograph, ...],
    reader: Callable[[str], Callable[[], JpegPicture]],
    masks: Callable[[str], Callable[[], bytes]] | None,
) -> tuple[Caseload, ...]:
    shots: dict[str, dict[str, list[Photograph]]] = {name: defaultdict(list) for name in _HOSPITALS.values()}
    for shot in photographs:
        shots[shot.hospital][shot.lesion].append(shot)
    caseloads = []
    for hospital, lesions in shots.items():
        chosen = sorted(lesions)[: source.max_patients]
        cases = tuple(
            _case(hospital, sorted(lesions[lesion], key=lambda shot: shot.image), reader, masks)
            for lesion in chosen
        )
        if cases:
            caseloads.append(
                Caseload(name=hospital, scanner="dermatoscope", label_column=LABEL_COLUMN, cases=cases)
            )
    return tuple(caseloads)


def _case(
    hospital: str,
    shots: list[Photograph],
    reader: Callable[[str], Callable[[], JpegPicture]],
    masks: Callable[[str], Callable[[], bytes]] | None,
) -> Case:
    first = shots[0]
    subject = Subject(
        patient_id=first.lesion,
        name=f"{first.lesion.replace('_', '^', 1)}",
        sex=first.sex,
        age_years=first.age_years,
    )
    images = tuple(
        Image(
            header=Header(
                dataset="ham10000",
                hospital=hospital,
                subject=subject,
                image=number,
                kind="photograph",
                deidentified_by="Published without identity by HAM10000",
            ),
            picture=reader(shot.image),
        )
        for number, shot in enumerate(shots, start=1)
    )
    return Case(
        patient_id=first.lesion,
        label=first.label,
        role=role_of(first.lesion),
        images=images,
        masks=()
        if masks is None
        else tuple(
            Mask(name=f"{number}.png", content=masks(shot.image))
            for number, shot in enumerate(shots, start=1)
        ),
    )


def _reader(
    images: zipfile.ZipFile, members: Mapping[str, str]
) -> Callable[[str], Callable[[], JpegPicture]]:
    def read(image: str) -> Callable[[], JpegPicture]:
        return lambda: JpegPicture(stream=images.read(members[image]))

    return read


def _mask_reader(packed: zipfile.ZipFile, members: Mapping[str, str]) -> Callable[[str], Callable[[], bytes]]:
    """What is brighter than the middle is inside. Two masks are so everywhere: the lesion fills the picture."""

    def read(image: str) -> Callable[[], bytes]:
        return lambda: png_bytes(
            np.asarray(Pillow.open(BytesIO(packed.read(members[image]))).convert("L")) > _INSIDE_ABOVE
        )

    return read
