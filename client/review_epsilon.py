"""Of a review: what ε means for one patient, and what is left of the lifetime budget."""

import math
from collections.abc import Iterator

from client.budget import evaluation_cost, lifetime, training_cost
from client.review_mode import promise_of_mode
from client.review_sentences import (
    Section,
    Sentence,
    at_most,
    counted,
    plain,
    refusal,
    share,
    warning,
)
from client.site_file import Policy
from privacy.accounting import PrivacyTargetError
from privacy.interpretation import best_guess
from privacy.ledger import Ledger
from shared_models.study import Study
from shared_models.visible_text import quoted

WEAK = 0.99
"""From this probability of a right guess on, the review says that the bound alone rules out little."""


def what_epsilon_means(study: Study) -> Section:
    """What training, validation and test patients are promised, in words, and against whom."""
    return Section(
        title="What this means for one patient",
        sentences=(*_unit(study), *_training(study), *_evaluation(study), *_limits(study)),
    )


def what_is_left(study: Study, ledger: Ledger, policy: Policy, *, run_id: str) -> Section:
    """What run *run_id* of the study costs, and what is spent and left of the hospital's own budget."""
    return Section(
        title="What is left of this hospital's privacy budget",
        sentences=(
            *_run_cost(study),
            *_runs(study, ledger, policy, run_id),
            *_lifetime(study, ledger, policy, run_id),
        ),
    )


def _unit(study: Study) -> Iterator[Sentence]:
    if study.privacy.mode == "none":
        return
    yield plain(
        "The promise is about one patient, with all images under one Patient ID at this hospital: it compares a study "
        "with this patient to the same study without."
    )
    if study.patient != "patient":
        yield warning(
            f"In this study a Patient ID stands for {quoted(study.patient)}, not for a person: whoever has several is "
            "protected less, each adds to the others."
        )


def _training(study: Study) -> Iterator[Sentence]:
    epsilon, delta = study.privacy.epsilon, study.privacy.delta
    if epsilon is None or delta is None:
        yield warning(
            'NO DIFFERENTIAL PRIVACY (privacy.mode = "none"): nothing bounds what the sums and the finished model tell '
            "about a training patient. Masking keeps one hospital's contribution from the server, not a patient from "
            "whoever sees the sums or the model."
        )
        return
    yield plain(
        f"A training patient loses at most ε = {epsilon:g} at δ = {delta:g} in the whole run: whoever guesses whether "
        "a certain patient took part, with even odds beforehand (50 %), is right with probability at most "
        f"{share(best_guess(epsilon=epsilon, delta=delta))}, even if they know all other patients."
    )
    yield plain(
        f"The odds of such a guess grow at most by the factor e^ε = {math.exp(epsilon):,.3g}, except for a remainder "
        f"of probability δ = {delta:g}."
    )
    yield from _weak(epsilon, delta, "training")
    yield from promise_of_mode(study)


def _evaluation(study: Study) -> Iterator[Sentence]:
    epsilon, delta = study.evaluation.epsilon, study.privacy.delta
    if epsilon is None or delta is None:
        yield warning(
            "NO DIFFERENTIAL PRIVACY FOR VALIDATION AND TEST PATIENTS (evaluation.unnoised = true): exact counts of "
            "their scores enter the sums, and nothing bounds what these tell about one of them."
        )
        return
    num = len(study.evaluation.validation_rounds)
    bound = share(best_guess(epsilon=epsilon, delta=delta))
    validated = f"in all {counted(num, 'validation')} together, and " if num else ""
    who = "A validation patient loses" if num else "A test patient loses"
    tested = "a test patient in the final test, " if num else "in the final test, "
    yield plain(
        f"{who} {validated}{tested}at most ε = {epsilon:g} at δ = {delta:g}, by noise of this hospital's own: a guess "
        f"as above is right with probability at most {bound} (these are other patients than those who train)."
    )
    if epsilon != study.privacy.epsilon:
        yield from _weak(epsilon, delta, "evaluation")


def _weak(epsilon: float, delta: float, what: str) -> Iterator[Sentence]:
    if (bound := best_guess(epsilon=epsilon, delta=delta)) >= WEAK:
        yield warning(
            f"{share(bound)} is close to certainty: against somebody who knows that much, ε = {epsilon:g} of {what} by "
            "itself rules out little. The masks still stand between the server and this hospital's contribution."
        )


def _limits(study: Study) -> Iterator[Sentence]:
    if study.privacy.mode == "none":
        return
    yield plain("Not covered: that this hospital takes part, and how long it takes to answer.")
    yield from _at_two_hospitals(study)


def _at_two_hospitals(study: Study) -> Iterator[Sentence]:
    delta = study.privacy.delta
    try:
        cost = training_cost(study)
    except PrivacyTargetError:  # said where the cost of a run is
        return
    if cost is None or delta is None:
        return
    epsilon = cost.epsilon_at_two_sites(delta, one_sum=study.privacy.mode == "distributed")
    yield plain(
        f"A patient who trains at two hospitals of this study loses more than is said above: at most ε = "
        f"{at_most(epsilon)} at δ = {delta:g}. No hospital can see that."
    )


def _run_cost(study: Study) -> Iterator[Sentence]:
    delta = study.privacy.delta
    try:
        cost, evaluation = training_cost(study), evaluation_cost(study)
    except PrivacyTargetError as error:
        yield refusal(f"The study cannot keep its own promise: {error}.")
        return
    if cost is None or delta is None:
        return
    yield plain(
        f"One run costs a training patient ε = {at_most(cost.epsilon(delta))} at δ = {delta:g}, computed here for all "
        f"{cost.num_steps:,} steps, those of failed rounds included, by privacy loss distributions (PLD, the tight way "
        f"for one run by itself), with a noise multiplier of {cost.noise_multiplier:.3g}: so many times what one "
        "patient can add to a step. Rényi differential privacy (RDP), the cross-check, gives "
        f"{at_most(cost.rdp_epsilon(delta))}."
    )
    if evaluation is not None:
        yield plain(
            f"It costs a patient who validates or tests at most ε = {study.evaluation.epsilon:g} at δ = {delta:g}."
        )


def _runs(study: Study, ledger: Ledger, policy: Policy, run_id: str) -> Iterator[Sentence]:
    begun = [run.run_id for run in ledger.runs() if run.study_hash == study.hash]
    again = " This run is one of these: going on with it costs nothing twice." if run_id in begun else ""
    yield plain(
        f"{counted(len(begun), 'run')} of this study {'has' if len(begun) == 1 else 'have'} begun here, "
        f"{policy.max_runs_per_study} allowed (policy.max_runs_per_study); each costs the same again.{again}"
    )


def _lifetime(study: Study, ledger: Ledger, policy: Policy, run_id: str) -> Iterator[Sentence]:
    try:
        budget = lifetime(ledger, policy, study, run_id=run_id)
    except PrivacyTargetError:
        return  # told above
    if budget is None:
        yield from _without_cap(study, policy)
        return
    at = f"at δ = {budget.delta:g}"
    if math.isinf(budget.spent):
        yield warning(
            "What this hospital's patients have spent so far is without limit or not known: a run had no differential "
            "privacy, or exact evaluation, or an earlier journal was lost."
        )
        return
    yield plain(
        "The ledger adds all runs of all studies up by RDP, the way that is sound where later studies are chosen after "
        "earlier results, and at one order that the cap fixes, which makes its figures larger again."
    )
    yield plain(
        f"Spent so far: {at_most(budget.spent)}. With this run: {at_most(budget.with_run)}. With all runs of this "
        f"study that are allowed: {at_most(budget.with_all_runs)}. The cap: {budget.cap:g} (policy.lifetime_epsilon), "
        f"all {at}."
    )
    if budget.with_run <= budget.cap < budget.with_all_runs:
        yield warning(
            "The budget does not pay for all runs that are allowed: the site will refuse those that would pass the cap."
        )


def _without_cap(study: Study, policy: Policy) -> Iterator[Sentence]:
    epsilon, delta, num = study.privacy.epsilon, study.privacy.delta, policy.max_runs_per_study
    yield warning(
        "This hospital has set no cap (policy.lifetime_epsilon): nothing bounds what all studies together may cost one "
        "patient."
    )
    if epsilon is not None and delta is not None and num > 1:
        yield plain(
            f"The {num} runs of this study that are allowed cost a training patient together at most "
            f"ε = {num * epsilon:g} at δ = {num * delta:g}, by simple addition."
        )
