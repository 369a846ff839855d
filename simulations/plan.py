"""What a study would cost in noise, bytes and exchanges, before anybody trains: the figures behind ``plan --json``."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from pydantic import Field

from client.budget import evaluation_cost
from client.global_step import check_noise_share
from privacy.accounting import PrivacyTargetError
from privacy.noise_share import GridError
from privacy.planning import (
    Noise,
    Overshoot,
    PlannedCost,
    Sites,
    overshoots,
    planned_costs,
)
from shared_models.architectures import outline
from shared_models.configuration import Frozen
from shared_models.manifest import Manifest
from shared_models.study import Study, largest_delta
from shared_models.subgroups import test_sensitivity
from shared_models.tasks.registry import task_of
from simulations.evaluation_noise import ASSUMED_AUROC, ASSUMED_DICE, auroc_deviation, dice_deviation
from simulations.traffic import Traffic, num_batches, run_traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What a study does not say.

    Attributes:
        names: of the sites.
        sizes: training patients of each.
        source: where the sizes come from.
        num_tested: patients of the final test of all sites; None where nobody knows.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    source: Literal["given", "scenario", "least"]
    num_tested: int | None


class CostEntry(Frozen):
    """What one epsilon asks for; all but the first two are null where no noise reaches it.

    Noise is in units of ``max_grad_norm``.
    """

    epsilon: float
    of_study: bool
    noise_multiplier: float | None
    epsilon_pld: float | None
    epsilon_rdp: float | None
    curator: Noise | None
    distributed: Noise | None
    local: Noise | None


class TrafficTotal(Frozen):
    """What one site exchanges in a whole run, in bytes."""

    rounds: int
    rounds_per_batch: int
    batches: int
    exchanges: int
    down: int
    up: int
    by_kind: tuple[Traffic, ...]


class DeltaEntry(Frozen):
    """The delta of the table, and the largest that is advised for so many patients: 1 / N^1.1."""

    value: float
    of_study: bool
    largest_advised: float
    within: bool


class EvaluationEntry(Frozen):
    """Noise on evaluation statistics; deviations are null where the study has none.

    Attributes:
        epsilon: of validation, and of test patients.
        releases: that a validation patient's epsilon is spread over.
        bin_deviation: on one bin of the final test, in patients, with all sites in the sum.
        num_histograms: pairs of histograms: one for each class or finding, where there are several; of segmentation one
            histogram for each structure.
        num_tested: patients of the final test of all sites.
        auroc_deviation: what the noise alone moves AUROC by in the final test; simulated.
        dice_deviation: the same of Dice, where the study is one of segmentation.
    """

    epsilon: float | None
    releases: int
    num_bins: int
    num_histograms: int
    bin_deviation: float | None
    num_tested: int | None
    assumed_auroc: float | None
    auroc_deviation: float | None
    assumed_dice: float | None
    dice_deviation: float | None


class Plan(Frozen):
    """The whole plan. ``refused`` says why no run of the study can keep its promise; null where one can."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    study: str
    title: str
    hash: str
    mode: str
    unit: str
    sites: tuple[str, ...]
    patients: tuple[int, ...]
    patients_from: Literal["given", "scenario", "least"]
    num_weights: int
    sample_rate: float
    steps: int
    expected_batch: float
    delta: DeltaEntry
    costs: tuple[CostEntry, ...]
    refused: str | None
    noise_shares: int
    overshoots: tuple[Overshoot, ...]
    traffic: TrafficTotal
    if_distributed: TrafficTotal | None
    evaluation: EvaluationEntry

    @property
    def own(self) -> CostEntry | None:
        """The row of the study's own epsilon; None where it has none."""
        return next((entry for entry in self.costs if entry.of_study), None)


def make_plan(study: Study, assumed: Assumed, *, epsilons: Sequence[float]) -> Plan:
    """Return the plan of *study* for *epsilons* and its own.

    Args:
        study: of any mode.
        assumed: what it does not say; as many sites as the study's terms allow.
        epsilons: to compare, each above 0.
    """
    aggregation, training = study.aggregation, study.training
    sites = Sites(
        sizes=assumed.sizes,
        least=aggregation.min_sites_in_sum,
        num_colluding=aggregation.num_colluding,
        equal_weights=aggregation.weights == "equal",
    )
    num_weights = Manifest.of(outline(study)).num_weights
    delta = _delta(study, sites.num_patients)
    own = study.privacy.epsilon
    costs = planned_costs(
        sorted({*epsilons, *(() if own is None else (own,))}),
        delta=delta.value,
        sample_rate=training.sample_rate,
        num_steps=study.num_steps,
        num_weights=num_weights,
        sites=sites,
    )
    several = study.privacy.mode != "distributed" and training.local_steps > 1 and sites.can_share_noise
    return Plan(
        study=study.name,
        title=study.title,
        hash=study.hash,
        mode=study.privacy.mode,
        unit=study.patient,
        sites=assumed.names,
        patients=assumed.sizes,
        patients_from=assumed.source,
        num_weights=num_weights,
        sample_rate=training.sample_rate,
        steps=study.num_steps,
        expected_batch=training.sample_rate * sites.num_patients,
        delta=delta,
        costs=tuple(_cost(planned, own) for planned in costs),
        refused=_refused(study, num_weights),
        noise_shares=sites.least - sites.num_colluding,
        overshoots=_overshoots(sites),
        traffic=_traffic(study, assumed.names, num_weights),
        if_distributed=_traffic(_step_by_step(study), assumed.names, num_weights) if several else None,
        evaluation=_evaluation(study, assumed),
    )


def _delta(study: Study, num_patients: int) -> DeltaEntry:
    own, largest = study.privacy.delta, largest_delta(num_patients)
    value = largest if own is None else own
    return DeltaEntry(value=value, of_study=own is not None, largest_advised=largest, within=value <= largest)


def _refused(study: Study, num_weights: int) -> str | None:
    """Why no run of the study can keep its promise; None where one can."""
    try:
        check_noise_share(study, num_weights=num_weights)
    except (PrivacyTargetError, GridError) as error:
        return str(error)
    return None


def _cost(planned: PlannedCost, own: float | None) -> CostEntry:
    noise = planned.noise
    return CostEntry(
        epsilon=planned.epsilon,
        of_study=planned.epsilon == own,
        noise_multiplier=None if planned.cost is None else planned.cost.noise_multiplier,
        epsilon_pld=planned.pld_epsilon,
        epsilon_rdp=planned.rdp_epsilon,
        curator=None if noise is None else noise.curator,
        distributed=None if noise is None else noise.distributed,
        local=None if noise is None else noise.local,
    )


def _overshoots(sites: Sites) -> tuple[Overshoot, ...]:
    if not sites.can_share_noise:
        return ()
    return overshoots(num_sites=len(sites.sizes), least=sites.least, num_colluding=sites.num_colluding)


def _traffic(study: Study, names: Sequence[str], num_weights: int) -> TrafficTotal:
    by_kind = run_traffic(study, names=names, num_weights=num_weights)
    return TrafficTotal(
        rounds=study.training.num_rounds,
        rounds_per_batch=study.aggregation.rounds_per_batch,
        batches=num_batches(study),
        exchanges=sum(one.times for one in by_kind),
        down=sum(one.down for one in by_kind),
        up=sum(one.up for one in by_kind),
        by_kind=by_kind,
    )


def _step_by_step(study: Study) -> Study:
    """The same steps, one in each round; for its messages only."""
    training = study.training.model_copy(update={"num_rounds": study.num_steps, "local_steps": 1})
    return study.model_copy(update={"training": training})


def _evaluation(study: Study, assumed: Assumed) -> EvaluationEntry:
    cost, task = evaluation_cost(study), task_of(study)
    deviation = None
    if cost is not None:  # every site adds all of the noise, in every mode
        deviation = cost.standard_deviation * test_sensitivity(study) * sqrt(len(assumed.sizes))
    simulated, dice = None, task.headings[0][0] == "dice"
    if deviation is not None and assumed.num_tested is not None:
        simulate = dice_deviation if dice else auroc_deviation
        simulated = simulate(task, bin_deviation=deviation, num_patients=assumed.num_tested)
    return EvaluationEntry(
        epsilon=study.evaluation.epsilon,
        releases=max(1, len(study.evaluation.validation_rounds)),
        num_bins=study.evaluation.num_bins,
        num_histograms=task.num_histograms,
        bin_deviation=deviation,
        num_tested=assumed.num_tested,
        assumed_auroc=None if dice else ASSUMED_AUROC,
        auroc_deviation=None if dice else simulated,
        assumed_dice=ASSUMED_DICE if dice else None,
        dice_deviation=simulated if dice else None,
    )
