"""One file, step by step: what its header says, then its pixels, so that nobody decodes what is not wanted."""

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from pydicom.dataset import FileDataset

from client.demographics import AGE_KEYWORDS, Demographics, age_of, sex_of
from client.dicom_file import (
    IDENTIFIER_KEYWORDS,
    MAX_INFLATED_BYTES,
    BoundedReader,
    Unusable,
    identifiers_of,
    opened,
    read_header,
)
from client.dicom_image import check_image, with_pixels
from client.file_facts import HeaderFacts, PixelFacts, header_facts, pixel_facts
from client.frames import chosen_frame, take_frame
from client.header_walk import look_through
from client.intensity import has_window
from client.masks import plane_mask
from client.person import PERSON_KEYWORDS, person_values
from client.preparation import Plane, prepare
from client.reasons import Reason
from client.structures import MaskWanted, present, with_mask
from shared_models.study import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the header of a readable DICOM file says.

    Attributes:
        identifiers: by keyword, empty where the file has none.
        facts: what may be remembered.
        finding: why it is no image of the study, None where nothing speaks against it yet.
        person: name, birth date and sex, by keyword: to be hashed, and never kept.
    """

    identifiers: Mapping[str, str] = field(repr=False)
    facts: HeaderFacts
    finding: Unusable | None
    person: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """An image as the model sees it, whether its file says how it is to be shown, and what its stored values say.

    Of a volume ``facts`` are those of all its slices in their order, in the study's units. Where a mask was wanted it
    is the last channel.
    """

    plane: Plane = field(repr=False)
    has_window: bool
    facts: PixelFacts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Current:
    """A file whose header was read and found nothing against it."""

    path: Path
    image: Image
    status: tuple[int, int, int] | None
    header: FileDataset
    file: BoundedReader


class OpenFile:
    """Reads one file at a time, and keeps it open between its header and its pixels."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._current: _Current | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def header(self, path: Path, image: Image) -> Header:
        """Read the header and check all that can be known before pixels are read.

        Raises:
            Unusable: it has no header that could be read.
        """
        self.close()
        status = _status(path)
        file = self._open.enter_context(opened(path, max_inflated=MAX_INFLATED_BYTES))
        header = read_header(file, with_frames=True, besides=(*PERSON_KEYWORDS, *AGE_KEYWORDS))
        identifiers, person = identifiers_of(header), person_values(header)
        demographics = Demographics(sex=sex_of(person), age=age_of(header, person))
        for keyword in (*PERSON_KEYWORDS, *AGE_KEYWORDS):
            header.pop(keyword, None)
        finding = None
        try:
            check_image(header, file, image)
        except Unusable as found:
            finding = found.with_traceback(None)
        told = Header(
            identifiers={keyword: identifiers.value(keyword) for keyword in IDENTIFIER_KEYWORDS},
            facts=header_facts(header, look_through(file, header), demographics),
            finding=finding,
            person=person,
        )
        if finding is None:
            self._current = _Current(path=path, image=image, status=status, header=header, file=file)
        else:
            self.close()
        return told

    def prepared(self, path: Path, image: Image, mask: MaskWanted | None = None) -> Prepared:
        """Decode and prepare the image, whose header need not have been read before, and its mask where one is wanted.

        Raises:
            Unusable: with the reason, which may be one of the header.
        """
        current = self._taken(path, image)
        dataset, facts = current.header, list[PixelFacts]()
        try:
            take_frame(dataset, chosen_frame(dataset, image))
            with_pixels(dataset, current.file)
        finally:
            self.close()
        plane = prepare(dataset, image, lambda stored: facts.append(pixel_facts(stored)))
        found = facts[0]
        if mask is not None:
            classes = np.zeros((1, *image.shape[1:]), dtype=np.uint8)
            if mask.path is not None:
                classes = plane_mask(mask.path, dataset, image, structures=mask.structures)
            plane = with_mask(plane, classes)
            found = found.model_copy(update={"present": present(classes, mask.structures)})
        if _status(path) != current.status:
            raise Unusable(Reason.NOT_READABLE, "It was changed while it was read.")
        return Prepared(plane=plane, has_window=image.channels == 3 or has_window(dataset), facts=found)

    def close(self) -> None:
        """Close the file, if one is open."""
        self._current = None
        self._open.close()

    def _taken(self, path: Path, image: Image) -> _Current:
        """The open file, if it is this one, else this one opened."""
        if self._current is None or (self._current.path, self._current.image) != (path, image):
            told = self.header(path, image)
            if told.finding is not None:
                raise told.finding
        if self._current is None:
            raise RuntimeError("a file against which nothing was found is not open")
        return self._current


def digest_of(path: Path) -> bytes:
    """SHA-256 of the file's bytes. Raises Unusable."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise Unusable(Reason.NOT_READABLE, f"({error.strerror})") from None


def _status(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file; None where it cannot be looked at, which opening it will explain."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
