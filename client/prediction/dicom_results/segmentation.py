"""A mask as a DICOM Segmentation: binary, one segment for each structure, on the pixels of the source itself.

Slices in which nothing was found have no frame; where nothing was found at all there is one empty frame, since DICOM
knows no Segmentation without any.

Source: DICOM PS3.3 section A.51 (Segmentation IOD).
"""

from collections.abc import Sequence

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from highdicom.seg import Segmentation as SegmentationObject
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from client.dicom_file import Unusable
from client.prediction.dicom_results import codes
from client.prediction.dicom_results.model_identity import MAKER, ModelIdentity
from client.prediction.dicom_results.numbering import Place
from client.prediction.dicom_results.placing import on_plane, on_slices
from client.prediction.dicom_results.references import Sources, describing
from client.prediction.dicom_results.source_images import copied, slices_of
from client.prediction.reading import Mask, Reading
from client.reasons import Reason
from client.volume import Slice
from shared_models.study import Image


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
        mask = _on_plane(reading, reading.mask, header, identity.study.image)[np.newaxis]
        made = _object(reading, sources.stand_ins(), mask, identity, place)
        if "ImageOrientationPatient" not in header:
            made.add_new("PatientOrientation", "CS", header.get("PatientOrientation"))
        sources.put_right(made)
        return made
    headers, mask = _of_series(reading.mask, sources, identity)
    return _object(reading, headers, mask, identity, place)


def _on_plane(reading: Reading, mask: Mask, header: FileDataset, image: Image) -> Mask:
    """On the pixels of the source; as it is stored where how it lies was overridden, since else nothing was read."""
    try:
        return on_plane(mask, header, image)
    except Unusable as found:
        if found.reason is not Reason.ORIENTATION or not reading.overrides:
            raise
        return on_plane(mask, header, image.model_copy(update={"orientation": "as-stored"}))


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
    if len(headers) != len(slices):  # the frames of one file
        return [_with_frames(headers[0], slices)], placed
    kept = _each_place_once(slices)
    return [_with_thickness(headers[number], slices) for number in kept], placed[kept]


def _each_place_once(slices: Sequence[Slice]) -> list[int]:
    """Numbers of the slices without those that lie where an earlier one does: series hold copies."""
    normal = np.cross(slices[0].across, slices[0].down)
    depths = np.array([one.position @ normal for one in slices])
    near = 0.01 * float(_thickness(slices))
    kept: list[int] = []
    for number, depth in enumerate(depths):
        if not kept or np.abs(depths[kept] - depth).min() > near:
            kept.append(number)
    return kept


def _with_thickness(header: FileDataset, slices: Sequence[Slice]) -> FileDataset:
    """The header with a Slice Thickness: how far a mark on a slice reaches, where the source does not say it."""
    made = copied(header)
    if not made.get("SliceThickness"):
        made.SliceThickness = _thickness(slices)
    return made


def _with_frames(header: FileDataset, slices: Sequence[Slice]) -> FileDataset:
    """The header with functional groups that say where the frames lie, and nothing else."""
    shared, measures, turned = Dataset(), Dataset(), Dataset()
    first = slices[0]
    measures.PixelSpacing = [DSfloat(float(distance), auto_format=True) for distance in first.spacing]
    measures.SliceThickness = _thickness(slices)
    turned.ImageOrientationPatient = [
        DSfloat(float(part), auto_format=True) for part in (*first.across, *first.down)
    ]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turned]
    frames = []
    for one in slices:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [DSfloat(float(part), auto_format=True) for part in one.position]
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    made = copied(header)
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], frames
    return made


def _thickness(slices: Sequence[Slice]) -> DSfloat:
    """The usual distance between neighbouring slices, mm."""
    normal = np.cross(slices[0].across, slices[0].down)
    depths = np.unique([round(float(one.position @ normal), 3) for one in slices])
    return DSfloat(float(np.median(np.diff(depths))), auto_format=True)


def _object(
    reading: Reading, headers: list[FileDataset], mask: Mask, identity: ModelIdentity, place: Place
) -> Dataset:
    found = bool(mask.any())
    all_headers = headers
    segments = [
        _segment(number, name, reading, identity)
        for number, name in enumerate(reading.probabilities, start=1)
    ]
    if not found and len(headers) > 1:
        headers, mask = headers[:1], mask[:1]
    with describing():
        made = SegmentationObject(
            source_images=headers,
            pixel_array=mask,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
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


def _segment(number: int, name: str, reading: Reading, identity: ModelIdentity) -> SegmentDescription:
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
    told = f"{identity.in_short} Where the model saw nothing of the image, nothing is marked."
    overridden = "".join(f" Overridden: {sentence}" for sentence in reading.overrides)
    segment.SegmentDescription = f"{told}{overridden}"[:1024]
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
