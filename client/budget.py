"""What a study costs this site's patients, and whether the site can still afford it."""

import math
from dataclasses import dataclass

import numpy as np

from client.site_file import Policy
from privacy.accounting import (
    COUNT_STANDARD_DEVIATION,
    EvaluationCost,
    RunCost,
    TrainingCost,
    lifetime_epsilon,
)
from privacy.ledger import Ledger, LedgerRun
from privacy.randomness import CryptographicGenerator
from shared_models.study import Study


class BudgetExceeded(Exception):
    """The run would bring the patients' lifetime epsilon above the site's cap."""


def training_cost(study: Study) -> TrainingCost | None:
    """What all rounds of the study cost a training patient; None without privacy."""
    privacy = study.privacy
    if privacy.epsilon is None or privacy.delta is None:
        return None
    return TrainingCost.for_target(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sample_rate=study.training.sample_rate,
        num_steps=study.num_steps,
    )


def evaluation_cost(study: Study) -> EvaluationCost | None:
    """What all validations cost a validation patient, and the test a test patient; None where unnoised."""
    evaluation, delta = study.evaluation, study.privacy.delta
    if evaluation.epsilon is None or delta is None:
        return None
    return EvaluationCost.for_target(
        epsilon=evaluation.epsilon, delta=delta, num_releases=evaluation.num_releases
    )


def check_lifetime(ledger: Ledger, policy: Policy, study: Study, *, run_id: str) -> None:
    """Raise BudgetExceeded if run *run_id* of the study, in full, would pass the site's lifetime cap."""
    if policy.lifetime_epsilon is None or policy.lifetime_delta is None:
        return
    training, evaluation = training_cost(study), evaluation_cost(study)
    if training is None or evaluation is None:
        raise BudgetExceeded("the study promises some patients nothing, which no lifetime budget can pay for")
    planned = RunCost(training=training, evaluation=evaluation)
    cap, delta = policy.lifetime_epsilon, policy.lifetime_delta
    total = ledger.lifetime_epsilon(cap=cap, delta=delta, planned=planned, without=run_id)
    if total > cap:
        spent = ledger.lifetime_epsilon(cap=cap, delta=delta, without=run_id)
        raise BudgetExceeded(
            f"the run would bring the lifetime epsilon from {spent:.2f} to {total:.2f} (Rényi composition), "
            f"above policy.lifetime_epsilon = {policy.lifetime_epsilon:g}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """The lifetime budget around one run of a study, by Rényi composition; infinite where it has no bound.

    Attributes:
        cap, delta: of the site's policy.
        spent: by all runs so far, without the one that is asked about.
        with_run: and this run of the study, in full.
        with_all_runs: and every run of the study that the policy allows, in full.
    """

    cap: float
    delta: float
    spent: float
    with_run: float
    with_all_runs: float


def lifetime(ledger: Ledger, policy: Policy, study: Study, *, run_id: str) -> Lifetime | None:
    """What run *run_id* of the study would leave of the budget; None where there is no cap."""
    cap, delta = policy.lifetime_epsilon, policy.lifetime_delta
    if cap is None or delta is None:
        return None
    training, evaluation = training_cost(study), evaluation_cost(study)
    own = tuple(run.run_id for run in ledger.runs() if run.study_hash == study.hash)
    spent = ledger.lifetime_epsilon(cap=cap, delta=delta, without=run_id)
    others = ledger.costs(without=own)
    if training is None or evaluation is None or others is None:
        return Lifetime(cap=cap, delta=delta, spent=spent, with_run=math.inf, with_all_runs=math.inf)
    planned = RunCost(training=training, evaluation=evaluation)
    num_runs = max(policy.max_runs_per_study, len(own))
    return Lifetime(
        cap=cap,
        delta=delta,
        spent=spent,
        with_run=ledger.lifetime_epsilon(cap=cap, delta=delta, planned=planned, without=run_id),
        with_all_runs=lifetime_epsilon((*others, *[planned] * num_runs), cap=cap, delta=delta),
    )


def check_runs(ledger: Ledger, policy: Policy, study: Study, *, run_id: str) -> None:
    """Raise BudgetExceeded where the run's id is another study's, or the study was run as often as allowed.

    The server chooses run ids. Each new one costs the study's epsilon again, so the hospital says how many.
    """
    run = ledger.run(run_id)
    if run is not None and run.study_hash != study.hash:
        raise BudgetExceeded(
            f"run {run_id} belongs to study {run.study_hash[:12]} in the ledger; the server must choose a new run id"
        )
    others = [other for other in ledger.runs() if other.study_hash == study.hash and other.run_id != run_id]
    if len(others) >= policy.max_runs_per_study:
        raise BudgetExceeded(
            f"the study was run {len(others)} times here (policy.max_runs_per_study = {policy.max_runs_per_study}); "
            "another run costs its epsilon again: raise the number only if that is wanted"
        )


def noised_count(exact: int, *, study: Study, generator: CryptographicGenerator) -> int:
    """Return the patient count that may leave: rounded Gaussian noise, raised to the study's floor."""
    noised = int(np.rint(exact + COUNT_STANDARD_DEVIATION * generator.normal(1)[0]))
    return max(noised, study.patients.min_training)


def open_in_ledger(ledger: Ledger, study: Study, *, run_id: str, exact_count: int) -> LedgerRun:
    """Enter the run with its patient count, noised under differential privacy and drawn once; return the entry."""
    run = ledger.run(run_id)
    if run is None:
        cost, evaluation = training_cost(study), evaluation_cost(study)
        count = exact_count
        if cost is not None:
            count = noised_count(
                exact_count, study=study, generator=CryptographicGenerator.from_operating_system()
            )
        run = LedgerRun(
            run_id=run_id,
            study_hash=study.hash,
            sample_rate=study.training.sample_rate,
            noise_multiplier=None if cost is None else cost.noise_multiplier,
            delta=study.privacy.delta,
            noised_count=count,
            evaluation_deviation=None if evaluation is None else evaluation.standard_deviation,
            num_evaluations=0 if evaluation is None else evaluation.num_releases,
            mode=study.privacy.mode,
        )
        ledger.open_run(run)
    return run
