"""What is remembered of an image beside its pixels: coded attributes and simple statistics, nothing that names anybody.

`HeaderFacts` are codes, numbers and the scanner's name; `PixelFacts` are computed from the stored values. Both are
validated where they are made and where they arrive, because the process that reads a file may have been taken over.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydicom.dataset import FileDataset

from client.demographics import MOST_YEARS, Demographics
from client.dicom_file import Unusable, code_of, number_of, text_of
from client.identifying_facts import IdentifyingFacts
from client.orientation import transposed
from client.pixel_size import spacing_of
from shared_models.configuration import Frozen
from shared_models.tasks.segmentation import MOST_STRUCTURES

Code = Annotated[str, Field(pattern=r"^([A-Z0-9_]{0,16}|\?)$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Number = Annotated[int, Field(ge=0, le=2**31)]

_SCANNER = re.compile(r"[A-Za-z0-9 ._/()+-]{0,64}")


class HeaderFacts(Frozen):
    """What the header says of an image in codes and numbers; empty or None where it says nothing or no code.

    ``scanner`` is Manufacturer (0008,0070) and Manufacturer's Model Name (0008,1090), and ``?`` where they hold any
    character but letters, digits and ``._/()+-``; ``maker`` is the first of them. ``sex`` and ``age``, in years, are
    those of `client.demographics`. ``spacing`` is in mm, between rows and between columns; ``transposed``: whether rows
    and columns change places on the way to the standard orientation.
    """

    modality: Code = ""
    scanner: Annotated[str, Field(pattern=r"^([A-Za-z0-9 ._/()+-]{0,64}|\?)$")] = ""
    maker: Annotated[str, Field(pattern=r"^([A-Za-z0-9 ._/()+-]{0,64}|\?)$")] = ""
    sex: Annotated[str, Field(pattern=r"^[FMO]?$")] = ""
    age: Annotated[int | None, Field(ge=0, le=MOST_YEARS)] = None
    view: Code = ""
    body_part: Code = ""
    photometric: Annotated[str, Field(pattern=r"^([A-Z0-9_]{0,16}|PALETTE COLOR|\?)$")] = ""
    rows: Number | None = None
    columns: Number | None = None
    bits_stored: Number | None = None
    num_frames: Annotated[int, Field(ge=1, le=2**31)] = 1
    spacing: Annotated[tuple[float, float] | None, Field(strict=False)] = None
    transposed: bool = False
    burned_in: Code = ""
    identifying: IdentifyingFacts = IdentifyingFacts()


class PixelFacts(Frozen):
    """What the stored values of an image say.

    ``digest`` is SHA-256 over shape, type and values: equal for equal pixels, however they are compressed. What is
    remembered is a keyed hash of that (`keyed`).
    ``lowest_share`` and ``highest_share``: of all samples, those that have the image's own lowest and highest value.
    ``blank``: there is one value only. ``present``: where a study learns from masks, for each structure 1 where the
    prepared mask has some of it.
    """

    digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64}|[0-9a-f]{32})$")]
    lowest_share: Share
    highest_share: Share
    blank: bool
    present: Annotated[
        tuple[Annotated[int, Field(ge=0, le=1)], ...], Field(strict=False, max_length=MOST_STRUCTURES)
    ] = ()

    def keyed(self, pseudonym: Callable[[str], str]) -> "PixelFacts":
        """The same with what *pseudonym* makes of the digest: whoever has the image cannot find it here."""
        return self.model_copy(update={"digest": pseudonym(self.digest)})


def header_facts(
    header: FileDataset, identifying: IdentifyingFacts, demographics: Demographics
) -> HeaderFacts:
    """Return what a header says, whatever else is wrong with it.

    Args:
        header: what `client.dicom_file.read_header` returned.
        demographics: sex and age.
        identifying: how much of the whole header could identify somebody.
    """
    return HeaderFacts(
        modality=_code(header, "Modality"),
        scanner=_scanner(header, "Manufacturer", "ManufacturerModelName"),
        maker=_scanner(header, "Manufacturer"),
        sex=demographics.sex,
        age=demographics.age,
        view=_code(header, "ViewPosition"),
        body_part=_code(header, "BodyPartExamined"),
        photometric=_photometric(header),
        rows=_number(header, "Rows"),
        columns=_number(header, "Columns"),
        bits_stored=_number(header, "BitsStored"),
        num_frames=_number(header, "NumberOfFrames") or 1,
        spacing=_spacing(header),
        transposed=_transposed(header),
        burned_in=_code(header, "BurnedInAnnotation"),
        identifying=identifying,
    )


def pixel_facts(stored: npt.NDArray[np.generic]) -> PixelFacts:
    """Return what stored values say.

    Args:
        stored: at least one value, none of them NaN.
    """
    values = np.ascontiguousarray(stored)
    digest = hashlib.sha256(f"{values.shape}{values.dtype.newbyteorder('<').str}".encode())
    digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).data)
    lowest, highest = values.min(), values.max()
    return PixelFacts(
        digest=digest.hexdigest(),
        lowest_share=np.count_nonzero(values == lowest) / values.size,
        highest_share=np.count_nonzero(values == highest) / values.size,
        blank=bool(lowest == highest),
    )


def _code(header: FileDataset, keyword: str) -> str:
    try:
        return code_of(header, keyword)
    except Unusable:
        return "?"


def _photometric(header: FileDataset) -> str:
    try:
        text = text_of(header, "PhotometricInterpretation")
    except Unusable:
        return "?"
    return text if text == "PALETTE COLOR" else _code(header, "PhotometricInterpretation")


def _number(header: FileDataset, keyword: str) -> int | None:
    try:
        value = number_of(header, keyword)
    except Unusable:
        return None
    return int(value) if value is not None and value == int(value) and 0 <= value <= 2**31 else None


def _spacing(header: FileDataset) -> tuple[float, float] | None:
    try:
        return spacing_of(header)
    except Unusable:
        return None


def _transposed(header: FileDataset) -> bool:
    try:
        return transposed(header)
    except Unusable:
        return False


def _scanner(header: FileDataset, *keywords: str) -> str:
    try:
        name = " ".join(" ".join(text_of(header, keyword) for keyword in keywords).split())
    except Unusable:
        return "?"
    return name if _SCANNER.fullmatch(name) else "?"
