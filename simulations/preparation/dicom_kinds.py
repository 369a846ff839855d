"""The kinds of DICOM image that we write, and what each kind's modules demand beyond pixels and identity.

One table, ``KINDS``: SOP class, modality, and the attributes of its image modules (DICOM PS3.3, annex A). Facts
that a source does not give (dates, physicians, device settings) stay empty; nothing is invented for real images.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    UltrasoundImageStorage,
    VLPhotographicImageStorage,
)

Text = str | int | float | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of image: its SOP class and what its modules hold.

    Args:
        sop_class: SOP Class UID (0008,0016).
        modality: Modality (0008,0060).
        attributes: keyword to value, written as they stand.
        empty: keywords of type 2 attributes whose value nobody knows.
        region: code value (SNOMED CT) and meaning of the body part, for Anatomic Region Sequence (0008,2218).
        view: the same for the projection, for View Code Sequence (0054,0220).
        states_lossless: whether Lossy Image Compression (0028,2110) must be there although nothing was lost.
        empty_sequences: keywords of type 2 sequences without items.
    """

    sop_class: UID
    modality: str
    attributes: Mapping[str, Text]
    empty: tuple[str, ...] = ()
    region: tuple[str, str] | None = None
    view: tuple[str, str] | None = None
    states_lossless: bool = False
    empty_sequences: tuple[str, ...] = ()


_DIGITAL = Kind(
    sop_class=DigitalXRayImageStorageForPresentation,
    modality="DX",
    attributes={
        "PresentationIntentType": "FOR PRESENTATION",
        "BodyPartExamined": "CHEST",
        "ImageLaterality": "U",
        "PatientOrientation": ("L", "F"),
        "ViewPosition": "PA",
        "PixelIntensityRelationship": "LOG",
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
        "RescaleType": "US",
        "DetectorType": "SCINTILLATOR",
    },
    empty=("PositionerType",),
    region=("51185008", "Thorax"),
    view=("272479007", "postero-anterior"),
    states_lossless=True,
    empty_sequences=("AcquisitionContextSequence",),
)
_COMPUTED = Kind(
    sop_class=ComputedRadiographyImageStorage,
    modality="CR",
    attributes={"BodyPartExamined": "CHEST", "PatientOrientation": ("L", "F")},
    empty=("ViewPosition",),
)
"""Of chests."""

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        # PS3.3 A.26: Digital X-Ray Image IOD.
        "digital-x-ray": _DIGITAL,
        # PS3.3 A.2: Computed Radiography Image IOD.
        "computed-radiography": _COMPUTED,
        "digital-x-ray-forearm": replace(
            _DIGITAL,
            attributes={**_DIGITAL.attributes, "BodyPartExamined": "FOREARM", "ViewPosition": "AP"},
            region=("14975008", "Forearm"),
            view=("399348003", "antero-posterior"),
        ),
        "computed-radiography-forearm": replace(
            _COMPUTED,
            attributes={**_COMPUTED.attributes, "BodyPartExamined": "FOREARM"},
            empty=(*_COMPUTED.empty, "Laterality"),
        ),
        # PS3.3 A.3: Computed Tomography Image IOD.
        "computed-tomography": Kind(
            sop_class=CTImageStorage,
            modality="CT",
            attributes={"BodyPartExamined": "CHEST", "PatientPosition": "HFS"},
            empty=("AcquisitionNumber", "PositionReferenceIndicator"),
        ),
        # PS3.3 A.6: Ultrasound Image IOD.
        "ultrasound": Kind(
            sop_class=UltrasoundImageStorage,
            modality="US",
            attributes={"BodyPartExamined": "BREAST"},
            empty=("PatientOrientation", "Laterality"),
        ),
        # PS3.3 A.32.4: VL Photographic Image IOD.
        "photograph": Kind(
            sop_class=VLPhotographicImageStorage,
            modality="XC",
            attributes={},
            empty=("PatientOrientation", "Laterality"),
            region=("39937001", "Skin"),
            empty_sequences=("AcquisitionContextSequence",),
        ),
    }
)


def add_kind(dataset: Dataset, kind: Kind) -> None:
    """Write the attributes of *kind* into *dataset*."""
    dataset.SOPClassUID = kind.sop_class
    dataset.Modality = kind.modality
    for keyword in kind.empty:
        setattr(dataset, keyword, None)
    for keyword in kind.empty_sequences:
        setattr(dataset, keyword, [])
    for keyword, value in kind.attributes.items():
        setattr(dataset, keyword, list(value) if isinstance(value, tuple) else value)
    if kind.region is not None:
        dataset.AnatomicRegionSequence = [_code(*kind.region)]
    if kind.view is not None:
        dataset.ViewCodeSequence = [_code(*kind.view)]


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodeMeaning, code.CodingSchemeDesignator = value, meaning, "SCT"
    return code
