"""Whether patients are sampled as the accountant assumes: each with the study's rate, independently of all others.

Each made-up patient shows in an entry of the sum that is that patient's alone, and next to no noise is added: the sum
says who was in the sample of each step. The first patient has many images, the others one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from privacy.audit.proportions import count_interval
from shared_models.augmentation import Augmentation
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from simulations.audit.findings import Finding, Findings, Keys
from simulations.audit.patients import NEGATIVE, WithCanaries, canary_images, patient_set
from simulations.audit.release import Release, clipping_bound

MANY = 200
"""Images of the first patient."""
_PATIENTS, _STEPS, _LAGS = 60, 2000, 8
_ODD = 0.05
_FALSE_ALARM = 4e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Who was in the sample of each step.

    Attributes:
        members: bool, shape (steps, patients).
        odd: how far a patient's part of a step was, at most, from all or nothing.
        sample_rate: which the study claims.
    """

    members: NDArray[np.bool_]
    odd: float
    sample_rate: float


def watch_samples(
    study: Study, keys: Keys, *, num_patients: int = _PATIENTS, num_steps: int = _STEPS
) -> Samples:
    """Have a hospital make steps, and read from what it sends who was in which."""
    bound = clipping_bound(study)
    release = (
        Release.of(study, reach=2.0 * bound)
        .quiet()
        .training(local_steps=1, momentum=0.0, augmentation=Augmentation())
    )
    channels = study.image.channels
    task = task_of(study)
    num_pixels = channels * 8 * -(-num_patients // (channels * 8))
    model = WithCanaries(
        None, rows=0, num_pixels=num_pixels, num_outputs=task.num_outputs, axes=2 if task.dense else 0
    )
    images = canary_images(num_patients, (channels, 0, 8), brightness=1e3 * bound)
    own = [image[None] for image in images]
    own[0] = own[0].repeat(MANY, 1, 1, 1)
    patients = patient_set(own, [NEGATIVE] * num_patients, task, mask_shape=(1, 1))
    generator = keys()
    sums = np.stack([release.round(model, [patients], generator)[:num_patients] for _ in range(num_steps)])
    parts = sums / bound
    members = parts > 0.5
    return Samples(
        members=members,
        odd=float(np.abs(parts - members).max()),
        sample_rate=release.study.training.sample_rate,
    )


def inclusion(samples: Samples) -> Findings:
    """How often each patient was sampled: the one with many images, and the one furthest from the rate."""
    num_steps, num_patients = samples.members.shape
    counts, rate = samples.members.sum(axis=0), samples.sample_rate
    furthest = int(counts[np.argmax(np.abs(counts - num_steps * rate))])
    return (
        Finding(
            what="largest distance of a patient's part of a step from 0 or 1",
            seen=samples.odd,
            most=_ODD,
        ),
        _count(
            f"steps of {num_steps} with the patient who has {MANY} images", int(counts[0]), num_steps, rate
        ),
        _count(
            f"steps of {num_steps} with the most unusual of {num_patients} patients",
            furthest,
            num_steps,
            rate,
            looked_at=num_patients,
        ),
    )


def independence(samples: Samples) -> Findings:
    """Sizes of samples, pairs of patients, and steps that follow each other."""
    members, rate = samples.members, samples.sample_rate
    return (
        _far("steps", "size is", members.sum(axis=1), members.shape[1], rate),
        _far("patients", "steps are", members.sum(axis=0), members.shape[0], rate),
        _pairs(members, rate),
        _gaps(members, rate),
    )


def _far(what: str, has: str, counts: NDArray[np.int64], trials: int, rate: float) -> Finding:
    """How many of *what* have a count one standard deviation or more from the mean: none, where counts are fixed."""
    mean, deviation = trials * rate, (trials * rate * (1.0 - rate)) ** 0.5
    possible = np.arange(trials + 1)
    far = np.abs(possible - mean) >= deviation
    probability = min(1.0, float(stats.binom.pmf(possible[far], trials, rate).sum()))
    return _count(
        f"{what} of {len(counts)} whose {has} off {mean:.1f} by {deviation:.1f} or more",
        int(far[counts].sum()),
        len(counts),
        probability,
    )


def _pairs(members: NDArray[np.bool_], rate: float) -> Finding:
    """The pair of patients that is furthest from being together as often as independent ones."""
    num_steps, num_patients = members.shape
    together = members.T.astype(np.int64) @ members.astype(np.int64)
    pairs = together[np.triu_indices(num_patients, k=1)]
    furthest = int(pairs[np.argmax(np.abs(pairs - num_steps * rate**2))])
    return _count(
        f"steps of {num_steps} with both of the most unusual of {len(pairs)} pairs",
        furthest,
        num_steps,
        rate**2,
        looked_at=len(pairs),
    )


def _gaps(members: NDArray[np.bool_], rate: float) -> Finding:
    """How often a patient is in two steps that lie so far apart; the distance that is least as it should be."""
    lags = range(1, min(_LAGS, len(members) // 2) + 1)
    repeated = {lag: _repeated(members, lag) for lag in lags}
    unusual = max(lags, key=lambda lag: abs(repeated[lag][0] / repeated[lag][1] - rate**2))
    both, trials = repeated[unusual]
    return _count(
        f"patients of {trials} in two steps {unusual} apart, most unusual of {len(lags)} gaps",
        both,
        trials,
        rate**2,
        looked_at=len(lags),
    )


def _repeated(members: NDArray[np.bool_], lag: int) -> tuple[int, int]:
    """How often a patient is in step t and in t + lag, and of how many: each step is looked at once."""
    num_steps = len(members)
    first = np.array([step for step in range(num_steps - lag) if step // lag % 2 == 0])
    return int((members[first] & members[first + lag]).sum()), members[first].size


def _count(what: str, seen: int, trials: int, probability: float, *, looked_at: int = 1) -> Finding:
    least, most = count_interval(trials, probability, false_alarm=_FALSE_ALARM / looked_at)
    return Finding(what=what, seen=seen, least=least, most=most, false_alarm=_FALSE_ALARM)
