"""A reading as a Structured Report: probabilities, decisions at operating points, and who says so.

The slices of a series are named in the first group only; a group that names none is of all images of the report.

It is a Comprehensive SR after TID 1500 with one group (TID 1501) for each output: the finding, its probability, where
there are several models how far they differ, each operating point with its threshold, and what the study's test showed
of such a score. The model is a device observer (TID 1004) and an identified algorithm (TID 4019).

Source: DICOM PS3.16 (templates), PS3.3 section A.35.3 (Comprehensive SR IOD).
"""

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as standard

from client.prediction.dicom_results import codes
from client.prediction.dicom_results.model_identity import MAKER, ModelIdentity, new_uid
from client.prediction.dicom_results.numbering import Place
from client.prediction.dicom_results.references import STAND_IN, Sources, describing
from client.prediction.reading import Reading
from shared_models.model_card import INTENDED_USE


def measurement_report(reading: Reading, sources: Sources, identity: ModelIdentity, place: Place) -> Dataset:
    """Return the report of a reading, preliminary and not verified.

    Args:
        reading: what is reported.
        sources: its files.
        identity: of the model.
        place: of the report in its study.

    Raises:
        Unusable: the source's header cannot be described.
    """
    algorithm = AlgorithmIdentification(
        name=identity.name,
        version=identity.digest,
        parameters=identity.parameters,
        manufacturer=MAKER,
    )
    images = [
        SourceImageForMeasurementGroup(
            referenced_sop_class_uid=STAND_IN,
            referenced_sop_instance_uid=one.instance,
            referenced_frame_numbers=sources.frame_numbers,
        )
        for one in sources.images
    ]
    report = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_observer(identity)),
        procedure_reported=codes.PROCEDURE,
        imaging_measurements=[
            _group(reading, output, identity, algorithm, images if number == 0 or len(images) == 1 else [])
            for number, output in enumerate(reading.probabilities)
        ],
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(codes.ENGLISH),
    )
    report[0].ContentSequence.extend(
        [
            _text(codes.INTENDED_USE, INTENDED_USE),
            *(_text(codes.OVERRIDE, f"Overridden: {sentence}") for sentence in reading.overrides),
        ]
    )
    evidence = sources.stand_ins()
    with describing():
        made = ComprehensiveSR(
            evidence=evidence,
            content=report[0],
            is_complete=True,
            is_final=False,
            is_verified=False,
            manufacturer=MAKER,
            manufacturer_model_name=identity.name,
            software_versions=identity.software,
            device_serial_number=identity.digest,
            coding_schemes=codes.scheme_items(),
            **place.arguments,
        )
    sources.put_right(made)
    return made


def _observer(identity: ModelIdentity) -> ObserverContext:
    return ObserverContext(
        observer_type=standard.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=identity.uid,
            name=identity.name,
            manufacturer_name=MAKER,
            model_name=identity.study.title,
            serial_number=identity.digest,
        ),
    )


def _group(
    reading: Reading,
    output: str,
    identity: ModelIdentity,
    algorithm: AlgorithmIdentification,
    images: list[SourceImageForMeasurementGroup],
) -> MeasurementsAndQualitativeEvaluations:
    """What is said of one output."""
    measurements = [_probability(reading.probabilities[output])]
    if spread := reading.spreads.get(output):
        measurements += [
            _probability(spread.deviation, codes.STANDARD_DEVIATION),
            _probability(spread.low, codes.LOWEST),
            _probability(spread.high, codes.HIGHEST),
        ]
    points = [point for point in reading.points if point.output == output]
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=new_uid(), identifier=output),
        finding_type=codes.own(identity.in_words(output)),
        algorithm_id=algorithm,
        measurements=measurements,
        qualitative_evaluations=[
            QualitativeEvaluation(
                name=codes.own(f"Operating point {point.name}"),
                value=codes.POSITIVE if point.reached else codes.NEGATIVE,
            )
            for point in points
        ],
        source_images=images,
    )
    content = group[0].ContentSequence
    for point in points:
        relation = "reaches" if point.reached else "is below"
        score = reading.probabilities[output]
        content.append(
            _text(
                codes.COMMENT,
                f"The probability {score:.6g} {relation} the threshold {point.threshold:.6g} of "
                f"the operating point {point.name}.",
            )
        )
    if statement := reading.statements.get(output):
        content.append(_text(codes.TEST_STATEMENT, statement))
    return group


def _probability(value: float, derivation: CodedConcept | None = None) -> Measurement:
    return Measurement(name=codes.PROBABILITY, value=float(value), unit=codes.NO_UNITS, derivation=derivation)


def _text(name: CodedConcept, value: str) -> TextContentItem:
    return TextContentItem(name=name, value=value, relationship_type=RelationshipTypeValues.CONTAINS)
