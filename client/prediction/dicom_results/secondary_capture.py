"""A picture of a reading, such as an explanation, as a Secondary Capture that says what it is not.

Source: DICOM PS3.3 section A.8.1 (Secondary Capture Image IOD), C.7.6.1 (General Image), C.12.4 (references).
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from highdicom.sc import SCImage
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRLittleEndian

from client.prediction.dicom_results import codes
from client.prediction.dicom_results.model_identity import MAKER, ModelIdentity
from client.prediction.dicom_results.numbering import Place
from client.prediction.dicom_results.references import Sources, describing
from client.prediction.reading import Reading

Picture: TypeAlias = npt.NDArray[np.uint8]
"""Shape (rows, columns, 3), RGB."""

BANNER = "NOT A MEDICAL DEVICE - research"
_NARROWEST = 384
"""Columns below which a picture is enlarged, so that the banner can be read."""
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_AS_SOURCE = ("BurnedInAnnotation", "RecognizableVisualFeatures")


def secondary_capture(
    reading: Reading, picture: Picture, sources: Sources, identity: ModelIdentity, place: Place
) -> Dataset:
    """Return the picture with a banner below it as an object.

    The banner names nobody: whether the picture's annotations identify the patient is what the source says of its own,
    and nothing where it says nothing.

    Args:
        reading: what the picture is of.
        picture: RGB.
        sources: the reading's files.
        identity: of the model.
        place: of the object in its study.

    Raises:
        Unusable: the source's header cannot be described.
        ValueError: it is no RGB picture.
    """
    first, source, pixels = sources.first, sources.stand_ins()[0], with_banner(picture, identity)
    with describing():
        made = SCImage.from_ref_dataset(
            ref_dataset=source,
            pixel_array=pixels,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "P"),  # taken away below: the picture lies as the model saw it
            manufacturer=MAKER,
            manufacturer_model_name=identity.name,
            software_versions=identity.software,
            device_serial_number=identity.digest,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            coding_schemes=codes.scheme_items(),
            **place.arguments,
        )
        made.copy_patient_and_study_information(source)
    made.add_new("PatientOrientation", "CS", None)
    made.add_new("Laterality", "CS", _side(first))
    made.ConversionType = "WSD"
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.SecondaryCaptureDeviceManufacturer = MAKER
    made.SecondaryCaptureDeviceManufacturerModelName = identity.name
    made.SecondaryCaptureDeviceSoftwareVersions = identity.software
    for keyword in (*_AS_SOURCE, *(_LOSSY if first.get("LossyImageCompression") == "01" else ())):
        if keyword in first:
            made.add(first[keyword])
    overridden = "".join(f" Overridden: {sentence}" for sentence in reading.overrides)
    made.DerivationDescription = f"{identity.in_short} {BANNER}.{overridden}"[:1024]
    references = sources.references()
    for reference in references:
        reference.PurposeOfReferenceCodeSequence = [codes.SOURCE_IMAGE]
    made.SourceImageSequence = references
    return made


def _side(header: FileDataset) -> str | None:
    """Of a paired body part; None where the source does not say one."""
    sides = (str(header.get(keyword) or "") for keyword in ("Laterality", "ImageLaterality"))
    return next((side for side in sides if side in ("L", "R")), None)


def check_picture(picture: Picture) -> None:
    """Raise ValueError where it is no RGB picture."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(
            f"the picture is {picture.dtype} of shape {picture.shape}; must be uint8 of shape (rows, columns, 3)"
        )


def with_banner(picture: Picture, identity: ModelIdentity) -> Picture:
    """Return the picture with a strip below it that says what it is not, and which model it is of.

    A narrow picture is enlarged by a whole factor.

    Raises:
        ValueError: it is no RGB picture.
    """
    check_picture(picture)
    factor = -(-_NARROWEST // picture.shape[1]) if picture.shape[1] < _NARROWEST else 1
    enlarged = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    columns = enlarged.shape[1]
    size = max(12.0, columns / 24)
    lines = [(BANNER, _font(BANNER, columns, size))]
    told = f"{identity.name}, model {identity.digest[:12]}"
    lines.append((told, _font(told, columns, size * 0.7)))
    height = int(size * 2.6)
    strip = Pillow.new("RGB", (columns, height), "black")
    draw, top = ImageDraw.Draw(strip), size * 0.25
    for text, font in lines:
        draw.text((columns / 2, top), text, fill="white", font=font, anchor="ma")
        top += size * 1.2
    return np.concatenate([enlarged, np.asarray(strip, dtype=np.uint8)])


def _font(text: str, columns: int, size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, small enough for the text to fit into so many columns."""
    font = ImageFont.load_default(size)
    width = font.getlength(text)
    return font if width <= 0.96 * columns else ImageFont.load_default(size * 0.96 * columns / width)
