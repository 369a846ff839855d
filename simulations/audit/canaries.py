"""The one-run audit: canaries that are in the data or not by coin flips, and guesses, from all that is opened, which.

Each canary is a patient whose clipped gradient is one entry of the sum, and nothing else is in that entry: the most
that a patient can do to be noticed. The server, too, is the worst: it opens the smallest sum that the promise is about,
and sends the same weights in every round, at which canaries are at their loudest.

Source: Steinke, Nasr and Jagielski (2023), "Privacy auditing with one (1) training run", arXiv 2305.08846; canaries as
in Nasr et al. (2023), "Tight auditing of differentially private machine learning", section 4.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, stats

from privacy.audit.one_run import epsilon_bound, fewest_correct
from shared_models.architectures import outline
from shared_models.augmentation import Augmentation
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from simulations.audit.findings import Finding, Findings, Keys
from simulations.audit.patients import NEGATIVE, WithCanaries, canary_images, patient_set, random_images
from simulations.audit.release import Doubles, Release, clipping_bound, step_weights

NUM_CANARIES = 1000
_CONFIDENCE, _ALLOWED = 0.95, 1e-4
"""Of the bound; where a sound run would then fail more often than is allowed, the confidence is one minus that."""
_ORDINARY = 20
_BRIGHT = 1000.0
"""A canary's gradient before clipping, in clipping bounds: next to it, that of the model's own weights is nothing."""
_LARGEST_LOGIT = 0.3
"""Most by which noise on a canary's own weight moves its logit within a round."""
_NEAR_BEST, _MARGIN = 0.85, 0.03
_CONTROL_STEPS, _WORKS = 12, 0.5
"""Times that a canary is sampled, on average, in the game without noise; part of the largest bound to be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """How the guesses came out.

    Attributes:
        num_canaries: of which about half were in.
        num_guesses: fixed before the run, by `planned_guesses`.
        num_correct: of these.
        delta: of the claim.
        confidence: of the bound.
    """

    num_canaries: int
    num_guesses: int
    num_correct: int
    delta: float
    confidence: float = _CONFIDENCE

    @property
    def epsilon(self) -> float:
        """The run is not (this, delta) differentially private, at this confidence."""
        return epsilon_bound(
            num_canaries=self.num_canaries,
            num_guesses=self.num_guesses,
            num_correct=self.num_correct,
            delta=self.delta,
            confidence=self.confidence,
        )


def one_run(study: Study, keys: Keys, *, num_canaries: int = NUM_CANARIES) -> Findings:
    """Play the game over all rounds of the study, and once without noise, when it must be lost."""
    epsilon, delta = study.privacy.epsilon, study.privacy.delta
    if epsilon is None or delta is None:
        raise ValueError("the study has no privacy, so there is no promise to audit")
    training, release = study.training, loud_canaries(study)
    plan = planned_guesses(release, num_rounds=training.num_rounds, num_canaries=num_canaries, delta=delta)
    if (false_alarm := _false_alarm(plan, epsilon)) > _ALLOWED:
        plan, false_alarm = replace(plan, confidence=1.0 - _ALLOWED), _ALLOWED
    played = play(release, keys, num_rounds=training.num_rounds, plan=plan)
    few = math.ceil(_CONTROL_STEPS / training.sample_rate / training.local_steps)
    control = play(release.quiet(), keys, num_rounds=few, plan=plan)
    right = f"{played.num_correct} of {plan.num_guesses} guesses right"
    perfect = replace(plan, num_correct=plan.num_guesses)
    return (
        Finding(
            what=f"bound on epsilon, {plan.confidence:g} sure, {right}",
            seen=played.epsilon,
            most=epsilon,
            false_alarm=false_alarm,
        ),
        Finding(what="the same if all guesses were right: the most it can show", seen=perfect.epsilon),
        Finding(
            what="the same without noise, to see that the attack works",
            seen=control.epsilon,
            least=_WORKS * perfect.epsilon,
        ),
    )


def loud_canaries(study: Study) -> Release:
    """Rounds in which weights change so little that a canary's gradient is beyond the clipping bound at every step."""
    release = Release.of(study, reach=1.0).training(augmentation=Augmentation())
    opening = release.opening
    reach = clipping_bound(study) * sum(step_weights(study.training)) + 10.0 * opening.standard_deviation(1)
    brightness = _BRIGHT * clipping_bound(study)
    return Release.of(study, reach=reach, largest_change=_LARGEST_LOGIT / brightness).training(
        augmentation=Augmentation()
    )


def planned_guesses(release: Release, *, num_rounds: int, num_canaries: int, delta: float) -> Guesses:
    """How many guesses to make, and how many will be right if the noise is as claimed, before anything has run.

    Of the numbers that promise almost the largest bound, the largest: more guesses show more where noise is missing.
    """
    plans = [
        Guesses(
            num_canaries=num_canaries,
            num_guesses=number,
            num_correct=round(number * _expected_accuracy(release, num_rounds, number / num_canaries)),
            delta=delta,
        )
        for number in range(num_canaries // 50, num_canaries + 1, num_canaries // 50)
    ]
    bounds = [plan.epsilon for plan in plans]
    if max(bounds) == 0.0:
        return plans[len(plans) // 5]
    return [plan for plan, bound in zip(plans, bounds, strict=True) if bound >= _NEAR_BEST * max(bounds)][-1]


def play(release: Release, keys: Keys, *, num_rounds: int, plan: Guesses) -> Guesses:
    """Flip the coins, have the hospitals make the rounds, and guess: the highest sums are in, the lowest out."""
    inside = keys().uniform(plan.num_canaries) < 0.5
    scores = _scores(release, keys, num_rounds=num_rounds, inside=inside)
    order, half = np.argsort(scores), plan.num_guesses // 2
    out, within = order[:half], order[len(order) - (plan.num_guesses - half) :]
    return replace(plan, num_correct=int((~inside[out]).sum() + inside[within].sum()))


def _scores(release: Release, keys: Keys, *, num_rounds: int, inside: NDArray[np.bool_]) -> Doubles:
    """Each canary's entry, summed over all rounds of the smallest sum that the promise is about."""
    image, bound = release.study.image, clipping_bound(release.study)
    canaries, rows = canary_images(len(inside), image.shape, brightness=_BRIGHT * bound), image.shape[1]
    num_pixels = canaries[0, :, rows:].numel()
    task = task_of(release.study)
    model = WithCanaries(
        outline(release.study),
        rows=rows,
        num_pixels=num_pixels,
        num_outputs=task.num_outputs,
        axes=len(image.shape) - 1 if task.dense else 0,
    )
    ordinary = torch.zeros(_ORDINARY, *canaries.shape[1:])
    ordinary[:, :, :rows] = random_images(_ORDINARY, image.shape, keys())
    others = [own[None] for own in ordinary]
    first = [canary[None] for canary, there in zip(canaries, inside, strict=True) if there]
    hospitals = [
        patient_set(
            [*first, *others], [NEGATIVE] * (len(first) + len(others)), task, mask_shape=image.shape[1:]
        )
    ]
    hospitals += [patient_set(others, [NEGATIVE] * len(others), task, mask_shape=image.shape[1:])] * (
        release.opening.num_honest - 1
    )
    sums = np.zeros(len(inside))
    for _ in range(num_rounds):
        sums += release.round(model, hospitals, keys())[-num_pixels:][: len(inside)]
    return sums


def _expected_accuracy(release: Release, num_rounds: int, share: float) -> float:
    """Of guesses about this share of the canaries, if sums are Gaussian with the claimed noise and sampling."""
    bound, rate, steps = (
        clipping_bound(release.study),
        release.study.training.sample_rate,
        step_weights(release.study.training),
    )
    noise = release.opening.standard_deviation(release.opening.num_honest) / bound
    mean = num_rounds * rate * sum(steps)
    out = math.sqrt(num_rounds) * noise
    within = math.sqrt(num_rounds * (noise**2 + rate * (1.0 - rate) * sum(step**2 for step in steps)))
    half, widest = share / 2.0, 40.0 * within

    def above(cut: float) -> float:
        return float(0.5 * (stats.norm.sf(cut / out) + stats.norm.sf((cut - mean) / within))) - half

    def below(cut: float) -> float:
        return float(0.5 * (stats.norm.cdf(cut / out) + stats.norm.cdf((cut - mean) / within))) - half

    high = optimize.brentq(above, -widest, mean + widest)
    low = optimize.brentq(below, -widest, mean + widest)
    right = 0.5 * (stats.norm.sf((high - mean) / within) + stats.norm.cdf(low / out))
    return float(right / share)


def _false_alarm(plan: Guesses, epsilon: float) -> float:
    """Probability that so many guesses are right as refute the claim, with the claimed noise.

    By the theorem it is at most one minus the confidence, for any mechanism that keeps the claim. For this one, whose
    guesses are right as often as planned, take or leave a margin, it is a binomial tail.
    """
    fewest = fewest_correct(
        num_canaries=plan.num_canaries,
        num_guesses=plan.num_guesses,
        epsilon=epsilon,
        delta=plan.delta,
        confidence=plan.confidence,
    )
    if fewest is None:
        return 0.0
    accuracy = min(1.0, plan.num_correct / plan.num_guesses + _MARGIN)
    return float(stats.binom.sf(fewest - 1, plan.num_guesses, accuracy))
