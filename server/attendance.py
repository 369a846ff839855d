"""Which sites take part: who opened the run, who refused for good, and who is left alone for a while."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

LONGEST_REST = 16
"""Rounds after which a site that keeps failing is asked again at the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attendance:
    """What the server knows of the sites' part in a run.

    A site that does not answer costs all others the deadline. After the second time in a row it is left out of one
    round, then of three, of seven, up to `LONGEST_REST`; an answer makes all good.

    Attributes:
        opened: sites that opened the run.
        refused: reason by site that refused for good.
        failures: how often in a row a site did not answer, or failed in a setup.
        rests_until: number of the round from which it is asked again.
    """

    opened: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    rests_until: Mapping[str, int] = field(default_factory=dict)

    def with_opened(self, site: str) -> "Attendance":
        """The site opened the run, and may be asked at once; earlier failures still count until it does its part."""
        rests = {other: until for other, until in self.rests_until.items() if other != site}
        return replace(self, opened=self.opened | {site}, rests_until=rests)

    def with_lost(self, sites: Iterable[str]) -> "Attendance":
        """The sites have to open the run again."""
        return replace(self, opened=self.opened - frozenset(sites))

    def with_refused(self, reasons: Mapping[str, str]) -> "Attendance":
        """The sites refused for good."""
        return replace(self, opened=self.opened - frozenset(reasons), refused={**self.refused, **reasons})

    def with_failed(self, sites: Iterable[str], *, number: int) -> "Attendance":
        """The sites did not do their part around round *number*."""
        failures, rests = dict(self.failures), dict(self.rests_until)
        for site in sites:
            failures[site] = failures.get(site, 0) + 1
            rests[site] = number + min(2 ** (failures[site] - 1), LONGEST_REST)
        return replace(self, failures=failures, rests_until=rests)

    def with_answered(self, sites: Iterable[str]) -> "Attendance":
        """The sites did their part."""
        good = set(sites)
        return replace(
            self,
            failures={site: times for site, times in self.failures.items() if site not in good},
            rests_until={site: until for site, until in self.rests_until.items() if site not in good},
        )

    def awake(self, sites: Iterable[str], *, number: int | None = None) -> list[str]:
        """Those of *sites* that may be asked in round *number*, sorted; without it those that rest as well."""
        return sorted(
            site
            for site in sites
            if site not in self.refused and (number is None or self.rests_until.get(site, 0) <= number)
        )
