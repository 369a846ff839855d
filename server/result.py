"""``result.json``: the figures of a run. Its schema is described in docs/result.md."""

from importlib.metadata import version
from platform import python_version
from typing import Literal

import numpy as np
from pydantic import Field

from privacy.accounting import TrainingCost
from server.assessment import Assessment, assess
from server.checkpoint import Progress, RoundRecord
from server.course import Course
from server.metric_intervals import Noise
from server.metric_noise import cell_deviation, metric_noise
from server.subgroups import SubgroupsEntry, entries
from server.thresholds import chosen_for
from shared_models.configuration import Frozen
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from shared_models.tasks.task import Counts, Metrics, Task


class StudyEntry(Frozen):
    """Which study was run."""

    name: str
    title: str
    hash: str


class SecureAggregationEntry(Frozen):
    """What no single vector is learnt under, whatever the server does.

    Attributes:
        threshold: sites that open a sum.
        min_sites_in_sum: fewest vectors in any sum that was opened: max(threshold, min_cohort).
        num_colluding: sites that may work together with the server.
        honest_in_sum: fewest honest sites in any sum, as long as not more than those collude.
    """

    threshold: int
    min_sites_in_sum: int
    num_colluding: int
    honest_in_sum: int


class PrivacyEntry(Frozen):
    """What the run promises a training patient, and validation and test patients.

    ``epsilon`` is the claim, by privacy loss distributions; ``epsilon_rdp`` the same by Rényi differential privacy.
    """

    mode: Literal["none", "local", "distributed"]
    unit: str
    epsilon: float | None
    epsilon_rdp: float | None
    delta: float | None
    noise_multiplier: float | None
    sample_rate: float
    steps: int
    evaluation_epsilon: float | None
    evaluation_noised: bool
    secure_aggregation: SecureAggregationEntry


class SiteEntry(Frozen):
    """One site. Everything but the name and epsilon is there in simulations only, which own the sites."""

    name: str
    epsilon: float | None
    epsilon_by_round: tuple[tuple[int, float], ...] | None = None
    rounds_asked: int
    refused: str | None = None
    patients_used: int | None = None
    patients_found: int | None = None
    patients_by_role: dict[str, int] | None = None
    files_found: int | None = None
    left_out: dict[str, int] | None = None
    seconds: dict[str, float] | None = None
    test: dict[str, float | None] | None = None


class RoundEntry(Frozen):
    """One round: who is in it, how long its phases took, and the metrics of the model that it produced."""

    round: int
    survivors: tuple[str, ...]
    burned: str | None
    seconds: dict[str, float]
    metrics: dict[str, float | None] | None


class BaselineMetrics(Frozen):
    """A model trained outside the federation, on the test patients of all sites and of one.

    That one is the site which it was trained on alone, or the one that was left out of its training.
    """

    auroc: float | None
    accuracy: float | None
    auroc_within_sites: float | None = None
    metrics: dict[str, float | None]
    own: dict[str, float | None] | None = None
    by_site: dict[str, dict[str, float | None]] | None = None
    epsilon: float | None
    seconds: float


class Baselines(Frozen):
    """Each site alone, all pooled, and all pooled but one: same model, steps, sample rate and privacy."""

    alone: dict[str, BaselineMetrics]
    pooled: BaselineMetrics | None
    left_out: dict[str, BaselineMetrics] = Field(default_factory=dict)


class Result(Frozen):
    """All figures of a run.

    ``test`` is what the server knows (noised where the study says so), ``test_noise`` the standard deviation of that
    noise on each metric, ``test_assessment`` its intervals, curves and operating points, ``test_subgroups`` the groups
    that may be told of. ``exact_test`` and ``exact_assessment`` are there in simulations only, summed from the sites'
    own results; ``exact_auroc_in_bins`` is their AUROC if it were counted in the study's bins, without noise,
    ``exact_auroc_within_sites`` that of pairs of patients of the same site.
    ``test_burned`` says why there is no ``test``. ``model_digest`` is that of ``model.safetensors``.
    """

    schema_: Literal[3] = Field(default=3, alias="schema")
    run_id: str
    study: StudyEntry
    engine: str
    versions: dict[str, str]
    privacy: PrivacyEntry
    sites: tuple[SiteEntry, ...]
    rounds: tuple[RoundEntry, ...]
    test: dict[str, float | None]
    test_noise: dict[str, float | None] | None = None
    test_assessment: Assessment | None = None
    test_subgroups: tuple[SubgroupsEntry, ...] | None = None
    test_burned: str | None = None
    model_digest: str | None = None
    kept_round: int | None = None
    """The round whose model is tested and kept, where the study stops early; None where it is the last one."""
    exact_test: dict[str, float | None] | None = None
    exact_assessment: Assessment | None = None
    exact_auroc_in_bins: float | None = None
    exact_auroc_within_sites: float | None = None
    baselines: Baselines | None = None

    def to_json(self) -> str:
        """As indented JSON."""
        return self.model_dump_json(indent=2, by_alias=True)


def build_result(study: Study, progress: Progress, *, engine: str, refusals: dict[str, str]) -> Result:
    """Return the result as the server knows it: no single site's number but the cost of being asked."""
    task = task_of(study)
    cost = _cost(study)
    noise = _test_noise(study, progress)
    names = sorted({site for record in progress.rounds for site in record.asked} | set(refusals))
    return Result(
        run_id=progress.run_id,
        study=StudyEntry(name=study.name, title=study.title, hash=study.hash),
        engine=engine,
        versions=versions(),
        privacy=_privacy(study, cost),
        sites=tuple(_site(study, cost, progress, name, refusals.get(name)) for name in names),
        rounds=tuple(_round(task, record) for record in progress.rounds),
        test={} if progress.test is None else dict(metrics(task, progress.test)),
        test_noise=noise,
        test_assessment=_test_assessment(study, progress, noise),
        test_subgroups=_test_subgroups(study, progress),
        test_burned=progress.test_burned,
        kept_round=_kept_round(study, progress),
    )


def _kept_round(study: Study, progress: Progress) -> int | None:
    if study.training.early_stopping is None:
        return None
    return Course.of(study, progress.rounds).best_round


def _test_noise(study: Study, progress: Progress) -> dict[str, float | None] | None:
    if progress.test is None:
        return None
    return metric_noise(study, progress.test, num_sites=len(progress.tested))


def _test_assessment(
    study: Study, progress: Progress, noise: dict[str, float | None] | None
) -> Assessment | None:
    if progress.test is None:
        return None
    deviation = cell_deviation(study, num_sites=len(progress.tested))
    return assess(
        task_of(study),
        np.array(progress.test, dtype=np.int64),
        noise=Noise() if deviation is None else Noise(deviation=deviation, of_metrics=noise),
        points=chosen_for(study, _deciding(study, progress)),
    )


def _deciding(study: Study, progress: Progress) -> dict[int, Counts]:
    """The validations that thresholds may come from: with early stopping that of the model which was kept."""
    validations = {
        record.round: np.array(record.validation, dtype=np.int64)
        for record in progress.rounds
        if record.validation is not None
    }
    if study.training.early_stopping is None:
        return validations
    best = Course.of(study, progress.rounds).best_round
    return {number: sums for number, sums in validations.items() if number == best}


def _test_subgroups(study: Study, progress: Progress) -> tuple[SubgroupsEntry, ...] | None:
    if progress.test is None or not study.evaluation.subgroups:
        return None
    return entries(study, progress.groups, num_sites=len(progress.tested))


def versions() -> dict[str, str]:
    """Versions of what computed the figures."""
    packages = ("collegium", "torch", "opacus", "flwr", "pydicom", "dp-accounting", "numpy")
    return {"python": python_version(), **{package: version(package) for package in packages}}


def metrics(task: Task, statistics: tuple[int, ...]) -> Metrics:
    """Metrics of summed statistics as they stand in a checkpoint."""
    return task.metrics(np.array(statistics, dtype=np.int64))


def _cost(study: Study) -> TrainingCost | None:
    privacy = study.privacy
    if privacy.epsilon is None or privacy.delta is None:
        return None
    return TrainingCost.for_target(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sample_rate=study.training.sample_rate,
        num_steps=study.num_steps,
    )


def _privacy(study: Study, cost: TrainingCost | None) -> PrivacyEntry:
    delta = study.privacy.delta
    return PrivacyEntry(
        mode=study.privacy.mode,
        unit=study.patient,
        epsilon=None if cost is None or delta is None else cost.epsilon(delta),
        epsilon_rdp=None if cost is None or delta is None else cost.rdp_epsilon(delta),
        delta=delta,
        noise_multiplier=None if cost is None else cost.noise_multiplier,
        sample_rate=study.training.sample_rate,
        steps=study.num_steps,
        evaluation_epsilon=study.evaluation.epsilon,
        evaluation_noised=not study.evaluation.unnoised,
        secure_aggregation=_secure_aggregation(study),
    )


def _secure_aggregation(study: Study) -> SecureAggregationEntry:
    aggregation = study.aggregation
    least = aggregation.min_sites_in_sum
    return SecureAggregationEntry(
        threshold=aggregation.threshold,
        min_sites_in_sum=least,
        num_colluding=aggregation.num_colluding,
        honest_in_sum=least - aggregation.num_colluding,
    )


def _site(
    study: Study, cost: TrainingCost | None, progress: Progress, name: str, refused: str | None
) -> SiteEntry:
    asked = sum(name in record.asked for record in progress.rounds)
    epsilon = None
    if cost is not None and study.privacy.delta is not None:
        epsilon = (
            cost.after(asked * study.training.local_steps).epsilon(study.privacy.delta) if asked else 0.0
        )
    return SiteEntry(name=name, epsilon=epsilon, rounds_asked=asked, refused=refused)


def _round(task: Task, record: RoundRecord) -> RoundEntry:
    return RoundEntry(
        round=record.round,
        survivors=record.survivors,
        burned=record.burned,
        seconds=record.seconds,
        metrics=None if record.validation is None else dict(metrics(task, record.validation)),
    )
