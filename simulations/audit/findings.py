"""What checks find: ``audit.json``."""

import math
from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, computed_field

from privacy.randomness import CryptographicGenerator
from shared_models.configuration import Frozen

Keys: TypeAlias = Callable[[], CryptographicGenerator]
"""Gives a generator of its own to whoever asks: with a key from the operating system, or a test's."""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Finding(Frozen):
    """One figure, and where it has to lie.

    Attributes:
        what: is measured, with its unit.
        seen: the figure; None if it is not a finite number.
        least, most: bounds, both inclusive; None where there is none.
        false_alarm: bound on the probability that a sound system falls outside; 0 where nothing is left to chance.
    """

    what: str
    seen: Annotated[float | None, BeforeValidator(_finite)]
    least: float | None = None
    most: float | None = None
    false_alarm: float = Field(default=0.0, ge=0.0, le=1.0)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether it lies there."""
        if self.seen is None:
            return False
        least = -math.inf if self.least is None else self.least
        most = math.inf if self.most is None else self.most
        return least <= self.seen <= most

    @property
    def expected(self) -> str:
        """The bounds, for people."""
        if self.least is None:
            return "–" if self.most is None else f"≤ {figure(self.most)}"
        if self.most is None:
            return f"≥ {figure(self.least)}"
        if self.least == self.most:
            return figure(self.least)
        return f"{figure(self.least)} … {figure(self.most)}"


Findings: TypeAlias = tuple[Finding, ...]


class Check(Frozen):
    """One check.

    Attributes:
        name: of one word.
        claim: what holds if its findings are all right, in a sentence.
        source: where the claim, or the attack, is from.
    """

    name: str
    claim: str
    source: str
    findings: Findings

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether all findings are as they should be."""
        return all(finding.ok for finding in self.findings)


class Audit(Frozen):
    """All checks of a scenario's study."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    scenario: str
    study: str
    study_hash: str
    mode: str
    unit: str
    epsilon: float
    delta: float
    versions: dict[str, str]
    checks: tuple[Check, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether all checks are."""
        return all(check.ok for check in self.checks)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def false_alarm(self) -> float:
        """Bound on the probability that a sound system fails any check."""
        return sum(finding.false_alarm for check in self.checks for finding in check.findings)

    def to_json(self) -> str:
        """As it is written."""
        return self.model_dump_json(indent=2, by_alias=True)


def figure(value: float | None) -> str:
    """A number with the digits that matter."""
    if value is None:
        return "–"
    if value == round(value) and abs(value) < 1e6:
        return str(round(value))
    return f"{value:.4g}"
