"""Writing one valid DICOM file from grey values or from a JPEG stream.

The same header and picture give the same bytes, on every machine and at every time: UIDs are derived from names,
and no date is written that the source does not state.
"""

import uuid
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless

from simulations.preparation.dicom_kinds import KINDS, add_kind
from simulations.preparation.jpeg import read_jpeg_frame

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "collegium.simulations")
IMPLEMENTATION = UID(f"2.25.{uuid.uuid5(_NAMESPACE, 'implementation').int}")
VERSION_NAME = "COLLEGIUM_SIM_1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A patient as the header names it. Ages are in whole years; what is unknown is empty or None."""

    patient_id: str
    name: str
    sex: str = ""
    age_years: int | None = None

    def __post_init__(self) -> None:
        if self.sex not in ("", "M", "F", "O"):
            raise ValueError(f"sex is {self.sex!r}; DICOM (0010,0040) allows M, F, O or empty")
        if self.age_years is not None and not 0 <= self.age_years <= 150:
            raise ValueError(f"age_years is {self.age_years}; must lie in 0..150")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Whose image it is, of which kind, and from where.

    Args:
        dataset: name of the source; with *hospital*, patient, *study* and *image* it fixes the UIDs.
        hospital: the hospital's folder name, written as Institution Name.
        subject: the patient.
        study: number of the study of this patient, from 1.
        image: number of the image in the study, from 1.
        kind: a key of ``dicom_kinds.KINDS``.
        station: manufacturer and model, joined by ``^``; empty where unknown.
        derivation: how the picture was derived from the original; empty for an original.
        deidentified_by: who removed the identity of a real patient; empty for a synthetic one.
        pixel_spacing: millimetres between pixel centres at the detector, for X-ray images; None where unknown.
        kvp: tube voltage in kV; None where unknown.
    """

    dataset: str
    hospital: str
    subject: Subject
    study: int = 1
    image: int = 1
    kind: str
    station: str = ""
    derivation: str = ""
    deidentified_by: str = ""
    pixel_spacing: float | None = None
    kvp: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyPicture:
    """Grey values and how they are stored.

    Args:
        pixels: uint8 or uint16, shape (rows, columns), 0 to ``2**bits_stored - 1``, larger is brighter.
        bits_stored: 8 (one byte per pixel), or 9 to 16 (two bytes).
        inverted: store as MONOCHROME1 (larger is darker); the picture on a screen stays the same.
        windowed: write Window Center and Width over the full range.
        transfer_syntax: explicit or implicit little endian, or RLE Lossless.
    """

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    bits_stored: int = 8
    inverted: bool = False
    windowed: bool = True
    transfer_syntax: UID = ExplicitVRLittleEndian


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegPicture:
    """A whole JPEG file, baseline or extended sequential, 8 bits; it is carried byte for byte."""

    stream: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicePicture:
    """One slice of a CT, and where it lies in the patient: x to the left, y to the back, z to the head.

    Args:
        hounsfield: int16, shape (rows, columns), at least -1024.
        position: of the middle of the first pixel, mm, shape (3,).
        across: unit vector in which columns count up, shape (3,).
        down: unit vector in which rows count up, shape (3,).
        pixel_spacing: mm between rows and between columns.
        thickness: of the slice, mm.
        signed: store Hounsfield units as they are; else with an offset of 1024.
        transfer_syntax: explicit or implicit little endian, or RLE Lossless.
    """

    hounsfield: NDArray[np.int16]
    position: NDArray[np.float64]
    across: NDArray[np.float64]
    down: NDArray[np.float64]
    pixel_spacing: float
    thickness: float
    signed: bool = False
    transfer_syntax: UID = ExplicitVRLittleEndian


Picture = GreyPicture | SlicePicture | JpegPicture


def derived_uid(*names: str | int) -> UID:
    """A UID that depends on *names* alone. Source: DICOM PS3.5 B.2 (UUID derived UID), RFC 9562 (version 5)."""
    text = "/".join(str(name).replace("/", "//") for name in names)
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, text).int}")


def dicom_bytes(header: Header, picture: Picture) -> bytes:
    """The DICOM file of *picture*.

    Raises:
        ValueError: the kind is unknown, or the pixels do not fit ``bits_stored``.
        JpegError: the stream cannot be carried as it is.

    Source: DICOM PS3.10 section 7 (file format), PS3.3 annex A (information objects).
    """
    if header.kind not in KINDS:
        raise ValueError(f"kind is {header.kind!r}; must be one of {', '.join(KINDS)}")
    dataset = Dataset()
    add_kind(dataset, KINDS[header.kind])
    add_identity(dataset, header)
    _add_equipment(dataset, header)
    if isinstance(picture, GreyPicture):
        transfer_syntax = _add_grey(dataset, picture, header)
    elif isinstance(picture, SlicePicture):
        transfer_syntax = _add_slice(dataset, picture, header)
    else:
        transfer_syntax = _add_jpeg(dataset, picture)
    dataset.file_meta = _file_meta(dataset, transfer_syntax)
    if transfer_syntax == RLELossless:
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _file_meta(dataset: Dataset, transfer_syntax: UID) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    # dataset.compress() changes an uncompressed dataset, so it starts as explicit little endian.
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if transfer_syntax == RLELossless else transfer_syntax
    meta.ImplementationClassUID = IMPLEMENTATION
    meta.ImplementationVersionName = VERSION_NAME
    return meta


def add_identity(dataset: Dataset, header: Header) -> None:
    """Patient, General Study, General Series and SOP Common modules."""
    subject = header.subject
    names = (header.dataset, header.hospital, subject.patient_id)
    dataset.SOPInstanceUID = derived_uid("image", *names, header.study, header.image)
    dataset.StudyInstanceUID = derived_uid("study", *names, header.study)
    dataset.SeriesInstanceUID = derived_uid("series", *names, header.study)
    dataset.PatientID, dataset.PatientName = subject.patient_id, subject.name
    dataset.PatientSex, dataset.PatientBirthDate = subject.sex, None
    if subject.age_years is not None:
        dataset.PatientAge = f"{subject.age_years:03d}Y"
    if header.deidentified_by:
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = header.deidentified_by
    for keyword in ("StudyDate", "StudyTime", "ReferringPhysicianName", "AccessionNumber"):
        setattr(dataset, keyword, None)
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = str(header.study), 1, header.image
    dataset.InstitutionName = header.hospital
    dataset.BurnedInAnnotation = "NO"
    dataset.ImageType = ["DERIVED" if header.derivation else "ORIGINAL", "PRIMARY"]
    if header.derivation:
        dataset.DerivationDescription = header.derivation


def _add_equipment(dataset: Dataset, header: Header) -> None:
    """General Equipment module, and what the machine says of the exposure."""
    manufacturer, _, model = header.station.partition("^")
    dataset.Manufacturer = manufacturer
    if model:
        dataset.ManufacturerModelName = model
    if header.kvp is not None:
        dataset.KVP = header.kvp
    if header.pixel_spacing is not None:
        dataset.ImagerPixelSpacing = [f"{header.pixel_spacing:.4f}"] * 2


def _add_grey(dataset: Dataset, picture: GreyPicture, header: Header) -> UID:
    """Image Pixel and VOI LUT modules. Returns the transfer syntax."""
    pixels, largest = picture.pixels, 2**picture.bits_stored - 1
    if pixels.ndim != 2 or not 8 <= picture.bits_stored <= 16 or int(pixels.max(initial=0)) > largest:
        raise ValueError(
            f"pixels have shape {pixels.shape} and maximum {pixels.max(initial=0)}; "
            f"must be (rows, columns) and at most {largest} for bits_stored = {picture.bits_stored} (8..16)"
        )
    allocated = 8 if picture.bits_stored == 8 else 16
    stored = (largest - pixels if picture.inverted else pixels).astype(f"<u{allocated // 8}")
    dataset.PhotometricInterpretation = "MONOCHROME1" if picture.inverted else "MONOCHROME2"
    _add_layout(dataset, pixels.shape, samples=1, allocated=allocated, stored=picture.bits_stored)
    if header.kind == "digital-x-ray":
        dataset.PresentationLUTShape = "INVERSE" if picture.inverted else "IDENTITY"
        dataset.PixelIntensityRelationshipSign = 1 if picture.inverted else -1
    if KINDS[header.kind].states_lossless:
        dataset.LossyImageCompression = "00"
    if picture.windowed:
        dataset.WindowCenter, dataset.WindowWidth = 2 ** (picture.bits_stored - 1), 2**picture.bits_stored
    data = stored.tobytes()
    dataset.PixelData = data + b"\x00" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if allocated == 8 else "OW"
    return picture.transfer_syntax


def _add_slice(dataset: Dataset, picture: SlicePicture, header: Header) -> UID:
    """CT Image, Image Plane and Frame of Reference modules. Returns the transfer syntax."""
    values, offset = picture.hounsfield, 0 if picture.signed else 1024
    if values.dtype != np.int16 or values.ndim != 2 or int(values.min(initial=0)) < -1024:
        raise ValueError(
            f"hounsfield is {values.dtype} of shape {values.shape}, lowest {values.min(initial=0)}; must be int16 of "
            "shape (rows, columns), at least -1024"
        )
    dataset.ImageType = [*dataset.ImageType, "AXIAL"]
    names = (header.dataset, header.hospital, header.subject.patient_id, header.study)
    dataset.FrameOfReferenceUID = derived_uid("frame", *names)
    dataset.PixelSpacing = [f"{picture.pixel_spacing:.4f}"] * 2
    dataset.SliceThickness = f"{picture.thickness:.4f}"
    dataset.ImagePositionPatient = [f"{value:.4f}" for value in picture.position]
    dataset.ImageOrientationPatient = [f"{value:.8f}" for value in (*picture.across, *picture.down)]
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -offset, "HU"
    dataset.PhotometricInterpretation = "MONOCHROME2"
    _add_layout(dataset, values.shape, samples=1, allocated=16, stored=16)
    dataset.PixelRepresentation = int(picture.signed)
    dataset.PixelData = (
        (values.astype(np.int32) + offset).astype("<i2" if picture.signed else "<u2").tobytes()
    )
    dataset["PixelData"].VR = "OW"
    return picture.transfer_syntax


def _add_jpeg(dataset: Dataset, picture: JpegPicture) -> UID:
    """Image Pixel module of an encapsulated stream (PS3.5 A.4). Returns the transfer syntax."""
    frame = read_jpeg_frame(picture.stream)
    photometric = frame.photometric_interpretation
    if photometric == "YBR_FULL" and dataset.SOPClassUID == KINDS["photograph"].sop_class:
        # PS3.3 C.8.12.1 (VL Image module) knows no YBR_FULL; decoders take the sampling from the stream itself.
        photometric = "YBR_FULL_422"
    dataset.PhotometricInterpretation = photometric
    _add_layout(dataset, (frame.rows, frame.columns), samples=frame.num_components, allocated=8, stored=8)
    if frame.num_components == 3:
        dataset.PlanarConfiguration = 0
    dataset.LossyImageCompression = "01"
    ratio = frame.rows * frame.columns * frame.num_components / len(picture.stream)
    dataset.LossyImageCompressionRatio = f"{ratio:.2f}"
    dataset.LossyImageCompressionMethod = "ISO_10918_1"
    dataset.PixelData = encapsulate([picture.stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return frame.transfer_syntax


def _add_layout(
    dataset: Dataset, shape: tuple[int, int], *, samples: int, allocated: int, stored: int
) -> None:
    dataset.SamplesPerPixel = samples
    dataset.Rows, dataset.Columns = shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
    dataset.PixelRepresentation = 0
