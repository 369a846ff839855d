"""Rounds in which no patient says anything, so that what is opened is noise and nothing else.

Of no made-up patient the label is known, which leaves the loss zero: each gradient that is computed, clipped and summed
is exactly zero. Sampling, model, clipping, noise, steps and encoding are as ever.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import stats
from torch import nn

from client.patients import PatientSet
from privacy.audit.gaussian import (
    correlation_bound,
    kolmogorov_bound,
    kolmogorov_distance,
    largest_correlation_between,
    largest_correlation_within,
    mean_square_interval,
    normal_magnitudes,
)
from shared_models.architectures import outline
from shared_models.manifest import Manifest, trainable_weights
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from shared_models.vector import IntVector
from simulations.audit.findings import Finding, Findings, Keys
from simulations.audit.patients import SILENT, patient_set, random_images
from simulations.audit.release import Doubles, Release

_FALSE_ALARM, _ALL_FALSE_ALARMS = 2e-6, 2e-5
"""Of one finding; of the findings about all numbers of hospitals together."""
_PATIENTS, _NOTHING = 8, 1e-30
_ENTRIES, _LONGEST = 60_000, 65_536
"""Entries of noise that are looked at for each hospital, at least; entries of a vector that are correlated, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """What hospitals sent in some rounds, ``vectors[round][hospital]``, all of it noise.

    Each hospital has the same *patients*.
    """

    release: Release
    model: nn.Module
    patients: PatientSet
    vectors: tuple[tuple[IntVector, ...], ...]

    @classmethod
    def of(cls, study: Study, keys: Keys) -> Self:
        """Have as many hospitals as the study allows make as many rounds as statistics need."""
        model = outline(study)
        own = random_images(_PATIENTS, study.image.shape, keys())
        patients = patient_set([image[None] for image in own], [SILENT] * _PATIENTS, task_of(study))
        release = Release.of(study, reach=1.0)
        loudest = 10.0 * release.opening.standard_deviation(1)
        release = Release.of(study, reach=loudest)
        size = Manifest.of(model).num_weights
        return cls(
            release=release,
            model=model,
            patients=patients,
            vectors=tuple(
                tuple(
                    release.site_vector(model, patients, keys())
                    for _ in range(study.aggregation.num_sites_max)
                )
                for _ in range(max(2, math.ceil(_ENTRIES / size)))
            ),
        )

    def sums(self, num_sites: int) -> Doubles:
        """What the server opens where all but the first *num_sites* vanished, in claimed standard deviations.

        Returns:
            float64, shape (rounds, num_weights).
        """
        deviation = self.release.opening.standard_deviation(num_sites)
        opened = [self.release.opened(round[:num_sites], self.model) for round in self.vectors]
        return np.stack(opened) / deviation

    def of_site(self, number: int) -> Doubles:
        """What hospital *number* sent, in claimed standard deviations, float64, shape (rounds, num_weights)."""
        deviation = self.release.opening.standard_deviation(1)
        opened = [self.release.opened([round[number]], self.model) for round in self.vectors]
        return np.stack(opened) / deviation


def calibration(silence: Silence) -> Findings:
    """The sum over hospitals has the claimed noise, whoever vanishes; the honest ones alone have the accountant's."""
    aggregation, opening = silence.release.study.aggregation, silence.release.opening
    honest = opening.num_honest
    possible = range(aggregation.min_sites_in_sum, aggregation.num_sites_max + 1)
    alarm = _ALL_FALSE_ALARMS / (1 + 2 * len(possible))
    fewest = f"sum of {honest} honest, the fewest: variance / accountant's"
    findings = [variance(silence.sums(honest), fewest, false_alarm=alarm)]
    for num_sites in possible:
        sums = silence.sums(num_sites)
        where = f"sum of {num_sites} of {aggregation.num_sites_max} hospitals"
        findings += [
            variance(sums, f"{where}: variance / claimed", false_alarm=alarm),
            Finding(
                what=f"{where}: Kolmogorov distance from claimed",
                seen=kolmogorov_distance(sums.ravel()),
                most=kolmogorov_bound(sums.size, false_alarm=alarm),
                false_alarm=alarm,
            ),
        ]
    return (*findings, _each_weight(silence, silence.sums(aggregation.min_sites_in_sum)))


def each_site(silence: Silence) -> Findings:
    """Each hospital adds its own noise: the quietest and the loudest of them."""
    number = silence.release.study.aggregation.num_sites_max
    squares = [float(np.mean(silence.of_site(site) ** 2)) for site in range(number)]
    least, most = mean_square_interval(silence.of_site(0).size, false_alarm=_FALSE_ALARM / number)
    return (
        Finding(
            what=f"smallest variance / claimed, of {number} hospitals' own vectors",
            seen=min(squares),
            least=least,
            false_alarm=_FALSE_ALARM / 2.0,
        ),
        Finding(
            what=f"largest variance / claimed, of {number} hospitals' own vectors",
            seen=max(squares),
            most=most,
            false_alarm=_FALSE_ALARM / 2.0,
        ),
    )


def reuse(silence: Silence) -> Findings:
    """No noise is used twice: not in two rounds, not by two hospitals, not in two places of one vector."""
    vectors = np.concatenate(
        [silence.of_site(number) for number in range(silence.release.study.aggregation.num_sites_max)]
    )
    return correlations(vectors[:_MOST, :_LONGEST], "vectors")


_MOST = 48
"""Vectors that are correlated with each other."""


def correlations(vectors: Doubles, what: str) -> Findings:
    """Correlations between rows of *vectors*, which are noise of any deviation, and between their magnitudes."""
    num, length = vectors.shape
    deviations = np.sqrt(np.mean(vectors**2, axis=1, keepdims=True)) + _NOTHING
    both = vectors / deviations, normal_magnitudes(vectors / deviations)
    pairs = num * (num - 1) // 2 * length
    between = correlation_bound(length, false_alarm=_FALSE_ALARM / (2 * pairs))
    within = correlation_bound(num * length, false_alarm=_FALSE_ALARM / (2 * length))
    return (
        Finding(
            what=f"largest correlation of two of {num} {what}",
            seen=max(largest_correlation_between(each) for each in both),
            most=between,
            false_alarm=_FALSE_ALARM,
        ),
        Finding(
            what="the same of them with themselves, shifted",
            seen=max(largest_correlation_within(each) for each in both),
            most=within,
            false_alarm=_FALSE_ALARM,
        ),
    )


def variance(noise: Doubles, what: str, *, false_alarm: float = _FALSE_ALARM) -> Finding:
    """Compare noise in claimed standard deviations with its claim."""
    least, most = mean_square_interval(noise.size, false_alarm=false_alarm)
    return Finding(what=what, seen=float(np.mean(noise**2)), least=least, most=most, false_alarm=false_alarm)


def _each_weight(silence: Silence, sums: Doubles) -> Finding:
    """Noise on each tensor of weights, however small: the least probable one, times the number of tensors."""
    tails, start = [], 0
    for weight in trainable_weights(silence.model).values():
        noise = sums[:, start : start + weight.numel()]
        square = float(np.sum(noise**2))
        tails.append(2.0 * min(stats.chi2.cdf(square, noise.size), stats.chi2.sf(square, noise.size)))
        start += weight.numel()
    return Finding(
        what=f"least probable variance of {len(tails)} weight tensors: p-value",
        seen=min(1.0, min(tails) * len(tails)),
        least=_FALSE_ALARM,
        false_alarm=_FALSE_ALARM,
    )
