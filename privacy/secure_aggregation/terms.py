"""The constants of a study on which the promise rests, and what they tolerate for each number of sites."""

from dataclasses import dataclass
from typing import Protocol

from privacy.secure_aggregation.refusals import (
    CohortTooLarge,
    CohortTooSmall,
    TermsRefused,
    ThresholdTooLow,
    TooFewHonest,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What a batch of ``num_sites`` sites survives and promises.

    Attributes:
        vanish_before_upload: sites that may vanish before their vector arrived.
        vanish_in_all: sites that may vanish at any stage, the former included.
        num_colluding: sites that may work together with the server.
        honest_in_sum: least number of honest sites in every sum that the server learns.
    """

    num_sites: int
    vanish_before_upload: int
    vanish_in_all: int
    num_colluding: int
    honest_in_sum: int


class Constants(Protocol):
    """Whatever holds a study's constants of secure aggregation."""

    @property
    def num_sites_max(self) -> int: ...  # noqa: D102
    @property
    def threshold(self) -> int: ...  # noqa: D102
    @property
    def min_cohort(self) -> int: ...  # noqa: D102
    @property
    def num_colluding(self) -> int: ...  # noqa: D102
    @property
    def rounds_per_batch(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Constants that the study fixes; a site takes them from nowhere else.

    Attributes:
        num_sites_max: n_max, most sites in a batch.
        threshold: t, shares that open a secret, and confirmations that a site asks for. Never recomputed.
        min_cohort: k, least number of vectors in a sum.
        num_colluding: c, sites that may collude with the server.
        rounds_per_batch: R, rounds whose secrets one setup prepares.
    """

    num_sites_max: int
    threshold: int
    min_cohort: int
    num_colluding: int
    rounds_per_batch: int

    def __post_init__(self) -> None:
        if not (
            1 <= self.threshold <= self.num_sites_max
            and 1 <= self.min_cohort <= self.num_sites_max
            and self.num_colluding >= 0
            and self.rounds_per_batch >= 1
        ):
            raise TermsRefused(f"{self} holds a value outside its range")

    @classmethod
    def of(cls, constants: Constants) -> "Terms":
        """The terms that a study fixes."""
        return cls(
            num_sites_max=constants.num_sites_max,
            threshold=constants.threshold,
            min_cohort=constants.min_cohort,
            num_colluding=constants.num_colluding,
            rounds_per_batch=constants.rounds_per_batch,
        )

    @property
    def least(self) -> int:
        """Fewest survivors that a sum may have: max(t, k)."""
        return max(self.threshold, self.min_cohort)

    def check(self, num_sites: int) -> None:
        """Check that the promise holds for a batch of *num_sites* positions.

        Raises:
            CohortTooSmall, CohortTooLarge, TooFewHonest, ThresholdTooLow: by the bound that is broken.
        """
        if num_sites < self.least:
            raise CohortTooSmall(f"{num_sites} sites; the study wants {self.least} (threshold, min_cohort)")
        if num_sites > self.num_sites_max:
            raise CohortTooLarge(f"{num_sites} sites; the study allows {self.num_sites_max} (num_sites_max)")
        if self.least - self.num_colluding < 2:
            raise TooFewHonest(
                f"threshold = {self.threshold}, min_cohort = {self.min_cohort} and num_colluding = "
                f"{self.num_colluding} let a sum hold fewer than two honest sites; raise min_cohort or threshold"
            )
        if 2 * self.threshold <= num_sites + self.num_colluding:
            raise ThresholdTooLow(
                f"2 · threshold = {2 * self.threshold} must exceed {num_sites} sites + num_colluding = "
                f"{self.num_colluding}; raise the threshold"
            )

    def explain(self) -> tuple[str, ...]:
        """What the terms mean, one sentence for each possible number of sites in a round."""
        sentences = []
        for num_sites in range(self.least, self.num_sites_max + 1):
            known = self.tolerance(num_sites)
            sentences.append(
                f"{num_sites} sites: {known.vanish_before_upload} may vanish before their vector arrives, "
                f"{known.vanish_in_all} in all; {known.num_colluding} may work together with the server; "
                f"{known.honest_in_sum} honest sites at least stand in every sum"
            )
        return tuple(sentences)

    def tolerance(self, num_sites: int) -> Tolerance:
        """What a batch of *num_sites* tolerates. Raises TermsRefused where there can be none."""
        self.check(num_sites)
        return Tolerance(
            num_sites=num_sites,
            vanish_before_upload=num_sites - self.least,
            vanish_in_all=num_sites - self.threshold,
            num_colluding=self.num_colluding,
            honest_in_sum=self.least - self.num_colluding,
        )
