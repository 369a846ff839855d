"""What a result takes from the header of its source image: whose it is, which study, and where its pixels lie.

Nothing else is copied: no private attributes, no comments, no device. Text of any of DICOM's character sets becomes
Unicode, which results hold as UTF-8.

Source: DICOM PS3.3 sections C.7.1.1 (Patient), C.7.2.1 (General Study), C.7.2.2 (Patient Study).
"""

import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.multival import MultiValue
from pydicom.uid import UID
from pydicom.valuerep import DS, PersonName, validate_value

from client.dicom_file import (
    FRAME_KEYWORDS,
    MAX_INFLATED_BYTES,
    Unusable,
    guarded,
    identifiers_of,
    integer_of,
    opened,
    read_header,
)
from client.frames import num_frames, take_frame
from client.reasons import Reason
from client.series import placed
from client.volume import Slice

# fmt: off
EMPTY_WHERE_MISSING = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)
"""Type 2 in every object: they are there, and may be empty."""
_IDENTITY = (
    "IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence",
    "BreedRegistrationSequence", "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization",
    "StudyDescription", "PatientAge",
)
_IMAGE = (
    "Modality", "FrameOfReferenceUID", "PositionReferenceIndicator", "Rows", "Columns", "NumberOfFrames",
    "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio", "SliceThickness",
    "SpacingBetweenSlices", "ImagePositionPatient", "ImageOrientationPatient", "PatientOrientation",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod", "BurnedInAnnotation",
    "RecognizableVisualFeatures", "Laterality", "ImageLaterality",
)
# fmt: on
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_ALL = (*_UIDS, *EMPTY_WHERE_MISSING, *_IDENTITY, *_IMAGE)
_CHECKED = frozenset({"DA", "TM", "AS", "CS", "UI"})
"""Representations in which a value that is none would make the result invalid, and says nothing."""
_SEXES = ("M", "F", "O")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceImage:
    """One file that results refer to.

    Attributes:
        header: what results take from it, all of it valid; with the functional groups of an image of several frames.
    """

    header: FileDataset = field(repr=False)

    @property
    def sop_class(self) -> UID:
        """Its SOP Class UID."""
        return UID(self.header.SOPClassUID)

    @property
    def instance(self) -> UID:
        """Its SOP Instance UID."""
        return UID(self.header.SOPInstanceUID)

    @property
    def num_frames(self) -> int:
        """One where it does not say."""
        return num_frames(self.header)

    def frame(self, number: int) -> FileDataset:
        """The attributes of one frame, from 0, as an image of one frame has them."""
        own = copied(self.header)
        take_frame(own, number)
        if "NumberOfFrames" in own:
            del own.NumberOfFrames
        return own


def read_source(path: Path) -> SourceImage:
    """Read what results take from a file.

    Raises:
        Unusable: it cannot be read, or lacks one of the UIDs by which results refer to it.
    """
    with opened(path, max_inflated=MAX_INFLATED_BYTES) as file:
        raw = read_header(file, with_frames=True, besides=_ALL)
    identifiers = identifiers_of(raw)
    identifiers.require("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    header = FileDataset("", {})
    header.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _ALL:
        if (element := _cleaned(raw, keyword)) is not None:
            header.add(element)
    if missing := [keyword for keyword in _UIDS if not header.get(keyword)]:
        raise Unusable(Reason.MISSING_IDENTIFIER, f"{', '.join(missing)} is empty or no UID.")
    for keyword in EMPTY_WHERE_MISSING:
        if keyword not in header:
            setattr(header, keyword, None)
    if header.PatientSex not in _SEXES:
        header.PatientSex = None
    with guarded(Reason.BAD_ATTRIBUTE):
        for keyword in FRAME_KEYWORDS:
            if raw.get(keyword) and raw[keyword].VR == "SQ":
                header.add(raw[keyword])
    for keyword in ("Rows", "Columns"):
        integer_of(header, keyword, low=1, high=65535)
    return SourceImage(header=header)


def copied(header: FileDataset) -> FileDataset:
    """A header with elements of its own: setting an attribute that is there changes its element."""
    made = FileDataset("", {})
    for element in header:
        made.add(DataElement(element.tag, element.VR, element.value))
    return made


def slices_of(sources: Sequence[SourceImage]) -> list[Slice]:
    """Where the slices of a series lie, file by file and frame by frame; without values.

    Raises:
        Unusable: one does not say it.
    """
    nothing = np.zeros((1, 1), dtype=np.float32)
    return [
        placed(source.frame(number), nothing) for source in sources for number in range(source.num_frames)
    ]


def _cleaned(raw: FileDataset, keyword: str) -> DataElement | None:
    """One attribute in Unicode; None where it is missing, empty, or none of its kind."""
    with suppress(Unusable), guarded(Reason.BAD_ATTRIBUTE):
        if keyword not in raw or raw[keyword].is_empty:
            return None
        element = raw[keyword]
        if dictionary_VR(keyword) != element.VR:  # of a damaged file
            return None
        if element.VR == "SQ":
            return DataElement(element.tag, "SQ", [_unicode(item) for item in element.value])
        values = element.value if isinstance(element.value, MultiValue) else [element.value]
        plain = [_plain(value, element.VR) for value in values]
        if element.VR in _CHECKED:
            for value in plain:
                validate_value(element.VR, value, RAISE)
        return DataElement(element.tag, element.VR, plain if len(plain) > 1 else plain[0])
    return None


def _plain(value: object, representation: str) -> object:
    """Without the bytes and the character set that it was read from; numbers as DICOM writes them."""
    if isinstance(value, PersonName):
        return PersonName(_text(str(value)))
    if representation == "DS":
        return DS(float(str(value)), auto_format=True)
    if representation == "IS":
        return int(str(value))
    return value if isinstance(value, int | float) else _text(str(value))


def _text(value: str) -> str:
    """Without padding and control characters, which no value of one line may hold."""
    return "".join(character for character in value if unicodedata.category(character) != "Cc").strip()


def _unicode(item: Dataset) -> Dataset:
    """A code, or an item of codes, without private attributes."""
    made = Dataset()
    for element in item:
        if element.tag.is_private or element.is_empty:
            continue
        if element.VR == "SQ":
            made.add(DataElement(element.tag, "SQ", [_unicode(each) for each in element.value]))
        else:
            made.add(DataElement(element.tag, element.VR, _text(str(element.value))))
    return made
