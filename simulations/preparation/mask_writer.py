"""Writing masks: a grey PNG beside a plane image, or one DICOM SEG for a series.

The same mask gives the same bytes, on every machine and at every time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import pack_bits
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from simulations.preparation.dicom_kinds import KINDS
from simulations.preparation.dicom_writer import (
    IMPLEMENTATION,
    VERSION_NAME,
    Header,
    SlicePicture,
    add_identity,
    derived_uid,
)

Inside = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedSlice:
    """One slice of a series: its header and place, and what is inside of the structure, shape (rows, columns)."""

    header: Header
    picture: SlicePicture
    inside: Inside


def png_bytes(inside: Inside) -> bytes:
    """A grey PNG: 255 inside, else 0."""
    told = PngInfo()
    told.add_text("Software", VERSION_NAME)
    buffer = BytesIO()
    Pillow.fromarray(np.where(inside, 255, 0).astype(np.uint8)).save(buffer, "PNG", pnginfo=told)
    return buffer.getvalue()


def seg_bytes(slices: Sequence[MaskedSlice], *, label: str) -> bytes:
    """A DICOM SEG with one binary segment: a frame for each slice with something inside.

    Where nothing is inside of any slice it has one empty frame, since DICOM knows no SEG without frames.

    Args:
        slices: of one series, in the order of their places; at least one.
        label: what the segment is.

    Source: DICOM PS3.3 section A.51 (Segmentation IOD).
    """
    first = slices[0]
    names = (first.header.dataset, first.header.hospital, first.header.subject.patient_id, first.header.study)
    made = Dataset()
    add_identity(made, first.header)
    made.SOPClassUID = SegmentationStorage
    made.SOPInstanceUID, made.SeriesInstanceUID = derived_uid("mask", *names), derived_uid("masks", *names)
    made.FrameOfReferenceUID = derived_uid("frame", *names)
    made.PositionReferenceIndicator = None
    made.Modality, made.SeriesNumber, made.InstanceNumber = "SEG", 2, 1
    made.ImageType = ["DERIVED", "PRIMARY"]
    made.ContentDate, made.ContentTime = "20000101", "000000"  # type 1: a date that says that there is none
    made.ContentLabel, made.ContentDescription, made.ContentCreatorName = "MASK", None, None
    _add_equipment(made)
    _add_segment(made, label)
    shown = [number for number, one in enumerate(slices) if one.inside.any()] or [0]
    _add_frames(made, slices, shown)
    _add_pixels(made, np.stack([slices[number].inside for number in shown]))
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.ImplementationClassUID = IMPLEMENTATION
    made.file_meta.ImplementationVersionName = VERSION_NAME
    buffer = BytesIO()
    dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


def _add_equipment(made: Dataset) -> None:
    """General and Enhanced General Equipment modules."""
    made.Manufacturer, made.ManufacturerModelName = "Collegium", "simulation"
    made.DeviceSerialNumber, made.SoftwareVersions = "0", "1"


def _add_segment(made: Dataset, label: str) -> None:
    """Segmentation Image module."""
    made.SegmentationType = "BINARY"
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel, segment.SegmentAlgorithmType = 1, label, "MANUAL"
    segment.SegmentedPropertyCategoryCodeSequence = Items(
        [_code("49755003", "Morphologically Abnormal Structure")]
    )
    segment.SegmentedPropertyTypeCodeSequence = Items([_code("27925004", "Nodule")])
    made.SegmentSequence = Items([segment])


def _code(value: str, meaning: str) -> Dataset:
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, "SCT", meaning
    return made


def _add_frames(made: Dataset, slices: Sequence[MaskedSlice], shown: Sequence[int]) -> None:
    """Multi-frame Functional Groups, Multi-frame Dimension and Common Instance Reference modules."""
    picture = slices[0].picture
    measures, turned = Dataset(), Dataset()
    measures.PixelSpacing = [f"{picture.pixel_spacing:.4f}"] * 2
    measures.SliceThickness = f"{picture.thickness:.4f}"
    turned.ImageOrientationPatient = [f"{value:.8f}" for value in (*picture.across, *picture.down)]
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([turned])
    made.SharedFunctionalGroupsSequence = Items([shared])
    made.PerFrameFunctionalGroupsSequence = Items(
        [_frame(slices[number], place) for place, number in enumerate(shown, start=1)]
    )
    organisation = Dataset()
    organisation.DimensionOrganizationUID = derived_uid("dimensions", made.SOPInstanceUID)
    made.DimensionOrganizationSequence = Items([organisation])
    index = Dataset()
    index.DimensionOrganizationUID = organisation.DimensionOrganizationUID
    index.DimensionIndexPointer = 0x00200032  # Image Position (Patient)
    index.FunctionalGroupPointer = 0x00209113  # Plane Position Sequence
    made.DimensionIndexSequence = Items([index])
    made.NumberOfFrames = len(shown)
    series = Dataset()
    series.SeriesInstanceUID = _identity(slices[0].header).SeriesInstanceUID
    series.ReferencedInstanceSequence = Items([_reference(one.header) for one in slices])
    made.ReferencedSeriesSequence = Items([series])


def _frame(of: MaskedSlice, place: int) -> Dataset:
    frame, content, position, segment, derivation = (Dataset() for _ in range(5))
    content.DimensionIndexValues = [place]
    position.ImagePositionPatient = [f"{value:.4f}" for value in of.picture.position]
    segment.ReferencedSegmentNumber = 1
    source = _reference(of.header)
    source.PurposeOfReferenceCodeSequence = Items(
        [_dicom_code("121322", "Source image for image processing operation")]
    )
    derivation.SourceImageSequence = Items([source])
    derivation.DerivationCodeSequence = Items([_dicom_code("113076", "Segmentation")])
    frame.FrameContentSequence, frame.PlanePositionSequence = Items([content]), Items([position])
    frame.SegmentIdentificationSequence = Items([segment])
    frame.DerivationImageSequence = Items([derivation])
    return frame


def _dicom_code(value: str, meaning: str) -> Dataset:
    made = _code(value, meaning)
    made.CodingSchemeDesignator = "DCM"
    return made


def _reference(header: Header) -> Dataset:
    made = Dataset()
    made.ReferencedSOPClassUID = KINDS[header.kind].sop_class
    made.ReferencedSOPInstanceUID = _identity(header).SOPInstanceUID
    return made


def _identity(header: Header) -> Dataset:
    made = Dataset()
    add_identity(made, header)
    return made


def _add_pixels(made: Dataset, inside: Inside) -> None:
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = inside.shape[1:]
    made.BitsAllocated = made.BitsStored = 1
    made.HighBit = made.PixelRepresentation = 0
    made.LossyImageCompression = "00"
    made.PixelData = pack_bits(inside.astype(np.uint8))
    made["PixelData"].VR = "OB"
