"""A mask as a DICOM Segmentation: binary, one segment for each structure, on the pixels of the source itself.

Slices in which nothing was found have no frame; where nothing was found at all there is one empty frame, since DICOM
knows no Segmentation without any.

Source: DICOM PS3.3 section A.51 (Segmentation IOD).
"""

import warnings

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.seg import Segmentation as SegmentationObject
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRLittleEndian

from client.dicom_file import Unusable
from client.prediction.dicom_results import codes
from client.prediction.dicom_results.model_identity import MAKER, ModelIdentity
from client.prediction.dicom_results.numbering import Place
from client.prediction.dicom_results.placing import on_plane, on_slices
from client.prediction.dicom_results.references import Sources
from client.prediction.dicom_results.source_images import slices_of
from client.prediction.reading import Mask, Reading
from client.reasons import Reason
from client.volume import Slice


def segmentation(reading: Reading, sources: Sources, identity: ModelIdentity, place: Place) -> Dataset:
    """Return the mask of a reading as an object.

    Args:
        reading: of a model of segmentation.
        sources: its files.
        identity: of the model.
        place: of the object in its study.

    Raises:
        Unusable: the source does not say where its slices lie, or in which frame of reference.
    """
    if reading.mask is None:
        raise ValueError("a reading without a mask")
    if identity.study.image.depth is None:
        (source,) = sources.images
        header = source.frame(sources.frame or 0)
        mask = on_plane(reading.mask, header, identity.study.image)[np.newaxis]
        made = _object(reading, sources.stand_ins(), mask, identity, place)
        if "ImageOrientationPatient" not in header:
            made.add_new("PatientOrientation", "CS", header.get("PatientOrientation"))
        sources.put_right(made)
        return made
    headers, mask = _of_series(reading.mask, sources, identity)
    return _object(reading, headers, mask, identity, place)


def _of_series(mask: Mask, sources: Sources, identity: ModelIdentity) -> tuple[list[FileDataset], Mask]:
    """The files and the mask of each of their slices, each place once; or one slice where nothing was found."""
    headers = [one.header for one in sources.images]
    if any(not header.get("FrameOfReferenceUID") for header in headers):
        raise Unusable(
            Reason.BAD_ATTRIBUTE,
            "FrameOfReferenceUID is missing, without which no mask of a series is written.",
        )
    slices = slices_of(sources.images)
    shape = int(sources.first.Rows), int(sources.first.Columns)
    placed = on_slices(mask, slices, shape, identity.study.image)
    if len(headers) != len(slices):  # of several frames
        return headers, placed
    kept = _each_place_once(slices)
    return [headers[number] for number in kept], placed[kept]


def _each_place_once(slices: list[Slice]) -> list[int]:
    """Numbers of the slices without those that lie where an earlier one does: series hold copies."""
    normal = np.cross(slices[0].across, slices[0].down)
    depths = np.array([one.position @ normal for one in slices])
    usual = float(np.median(np.diff(np.unique(depths.round(3))))) if len(slices) > 1 else 0.0
    kept: list[int] = []
    for number, depth in enumerate(depths):
        if all(abs(depth - depths[earlier]) > 0.01 * usual for earlier in kept):
            kept.append(number)
    return kept


def _object(
    reading: Reading, headers: list[FileDataset], mask: Mask, identity: ModelIdentity, place: Place
) -> Dataset:
    found = bool(mask.any())
    all_headers = headers
    if not found and len(headers) > 1:
        headers, mask = headers[:1], mask[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values of the source, which they quote
        made = SegmentationObject(
            source_images=headers,
            pixel_array=mask,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _segment(number, name, identity) for number, name in enumerate(reading.probabilities, start=1)
            ],
            manufacturer=MAKER,
            manufacturer_model_name=identity.name,
            software_versions=identity.software,
            device_serial_number=identity.digest,
            omit_empty_frames=found,
            content_label="MASK",
            content_description=f"Not a medical device; {identity.name}"[:64],
            coding_schemes=codes.scheme_items(),
            transfer_syntax_uid=ExplicitVRLittleEndian,
            **place.arguments,
        )
    if len(all_headers) > len(headers):
        _refer_to_all(made, all_headers)
    return made


def _segment(number: int, name: str, identity: ModelIdentity) -> SegmentDescription:
    segment = SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=codes.NEUTRAL_CATEGORY,
        segmented_property_type=codes.own(name),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=identity.name,
            family=codes.ARTIFICIAL_INTELLIGENCE,
            version=identity.digest,
            source=MAKER,
        ),
    )
    segment.SegmentDescription = (
        f"{identity.in_short} Where the model saw nothing of the image, nothing is marked."
    )
    return segment


def _refer_to_all(made: Dataset, headers: list[FileDataset]) -> None:
    """Say of which series the mask is, beyond the slice whose empty frame stands for all."""
    (series,) = made.ReferencedSeriesSequence
    references = []
    for header in headers:
        reference = Dataset()
        reference.ReferencedSOPClassUID = header.SOPClassUID
        reference.ReferencedSOPInstanceUID = header.SOPInstanceUID
        references.append(reference)
    series.ReferencedInstanceSequence = references
