"""Writing ``model.safetensors``: the trained weights, and the card of what the server knows of them."""

from pathlib import Path

from server.assessment import Assessment, IntervalEntry
from server.checkpoint import write_atomically
from server.result import PrivacyEntry, Result
from shared_models.architectures import build_model
from shared_models.manifest import FloatVector, Manifest, unflatten
from shared_models.model_card import (
    CardBin,
    CardGroup,
    CardInterval,
    CardMetric,
    CardOutput,
    CardPoint,
    CardPrivacy,
    ModelCard,
)
from shared_models.model_file import model_bytes
from shared_models.study import Study
from shared_models.tasks.registry import task_of


def write_model(path: Path, study: Study, weights: FloatVector, result: Result) -> str:
    """Write weights by name, float32, with the card as metadata, whole or not at all.

    Weights that are not trained are in it too, as the study's seed or file made them: who uses the model needs nothing
    else. A file of initial weights lies in the same folder.

    Returns:
        The digest over card and weights, SHA-256, hexadecimal.
    """
    model = build_model(study, path.parent)
    card = card_of(study, result, manifest_hash=Manifest.of(model).hash)
    unflatten(weights, model)
    arrays = {name: weight.detach().numpy().copy() for name, weight in model.named_parameters()}
    content, digest = model_bytes(card, arrays)
    write_atomically(path, content)
    return digest


def card_of(study: Study, result: Result, *, manifest_hash: str) -> ModelCard:
    """Return the card of the model that a run ended with, of what stands in its *result* for everybody."""
    task, assessment = task_of(study), result.test_assessment
    return ModelCard(
        study=study,
        study_hash=study.hash,
        manifest_hash=manifest_hash,
        run_id=result.run_id,
        rounds=len(result.rounds),
        kept_round=result.kept_round or len(result.rounds),
        num_sites=len(result.sites),
        privacy=_privacy(result.privacy),
        outputs=tuple(task.output_names),
        activation=task.activation,
        tested=result.test.get("num_patients"),
        test=_metrics(
            result.test, {} if assessment is None else assessment.intervals, result.test_noise or {}
        ),
        test_noise=0.0 if assessment is None else assessment.noise,
        by_output=() if assessment is None else _outputs(assessment),
        subgroups=_groups(result),
        limits=_limits(study, result),
        versions=result.versions,
    )


def _privacy(entry: PrivacyEntry) -> CardPrivacy:
    return CardPrivacy(
        mode=entry.mode,
        unit=entry.unit,
        epsilon=entry.epsilon,
        delta=entry.delta,
        noise_multiplier=entry.noise_multiplier,
        evaluation_epsilon=entry.evaluation_epsilon,
        evaluation_noised=entry.evaluation_noised,
        min_sites_in_sum=entry.secure_aggregation.min_sites_in_sum,
        num_colluding=entry.secure_aggregation.num_colluding,
    )


def _metrics(
    values: dict[str, float | None], intervals: dict[str, IntervalEntry], noise: dict[str, float | None]
) -> dict[str, CardMetric]:
    return {
        name: CardMetric(value=value, interval=_interval(intervals.get(name)), noise=noise.get(name))
        for name, value in values.items()
    }


def _interval(entry: IntervalEntry | None) -> CardInterval | None:
    return None if entry is None else CardInterval(low=entry.low, high=entry.high, method=entry.method)


def _outputs(assessment: Assessment) -> tuple[CardOutput, ...]:
    return tuple(
        CardOutput(
            name=part.name,
            num_negative=part.num_negative,
            num_positive=part.num_positive,
            points=tuple(
                CardPoint(
                    name=point.name,
                    wanted=point.wanted,
                    threshold=point.threshold,
                    validated_round=point.validated_round,
                    missing=point.missing,
                    figures=point.figures,
                    intervals={name: _interval(one) for name, one in point.intervals.items()},
                )
                for point in part.operating_points
            ),
            calibration=tuple(
                CardBin(
                    low=group.low,
                    high=group.high,
                    num_patients=group.num_patients,
                    predicted=group.predicted,
                    observed=group.observed,
                    interval=_interval(group.interval),
                )
                for group in part.calibration
            ),
        )
        for part in assessment.parts
    )


def _groups(result: Result) -> tuple[CardGroup, ...]:
    return tuple(
        CardGroup(
            attribute=entry.attribute,
            name=group.name,
            metrics=_metrics(group.metrics, group.intervals, {}),
        )
        for entry in result.test_subgroups or ()
        for group in entry.shown
    )


def _limits(study: Study, result: Result) -> tuple[str, ...]:
    """What was not looked at, in sentences."""
    image, quality = study.image, study.quality
    codes = [("modality", image.modalities), ("view", quality.views), ("body part", quality.body_parts)]
    seen = ", ".join(f"{word} {' or '.join(given)}" for word, given in codes if given)
    found = [f"It was trained and tested on images of {seen}, and on no others."]
    if result.test:
        found.append(
            "It was tested on patients of the hospitals that trained it, and on no other hospital's: elsewhere it may "
            "do worse."
        )
    else:
        found.append("It was not tested: the final test gave no sum.")
    shown = {entry.attribute for entry in result.test_subgroups or () if entry.shown}
    if unseen := [name for name in ("sex", "age", "vendor") if name not in shown]:
        words = {"sex": "by sex", "age": "by age", "vendor": "by maker of the scanner"}
        found.append(f"Whether it does differently {', '.join(words[name] for name in unseen)} is not told.")
    for entry in result.test_subgroups or ():
        if entry.shown and entry.num_withheld:
            found.append(
                f"Of the groups by {entry.attribute}, {entry.num_withheld} are not told, because one had few patients."
            )
    if result.privacy.evaluation_noised:
        found.append("Its figures carry the noise that protects the test's patients.")
    if study.privacy.mode == "none":
        found.append("It was trained without differential privacy: its weights may tell of single patients.")
    return tuple(found)
