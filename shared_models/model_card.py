"""The card of a trained model: what it is, how it was trained, what its test showed, and what it is not for.

It stands in ``model.safetensors`` beside the weights. It holds what the server knows: sums over several hospitals,
noised where the study says so, and no single hospital's number.
"""

import json
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from shared_models.configuration import Frozen
from shared_models.study import Study
from shared_models.visible_text import visible

FORMAT: Literal["collegium-model-2"] = "collegium-model-2"
INTENDED_USE = (
    "Research on federated learning, by the hospital itself and on its own images. Not a medical device; not for "
    "decisions on patients."
)
NOT_A_DEVICE = "Not a medical device"
MIN_STATEMENT_PATIENTS = 20
"""Patients of the test with such a score, below which nothing is stated of one."""
WIDEST_STATEMENT = 0.4
"""Of the interval around the share that is stated; noise of evaluation makes it wider."""


class CardError(ValueError):
    """A card cannot be used. The message says what is wrong with it, without quoting it."""


class CardInterval(Frozen):
    """A 95 % confidence interval, and the method that it comes from."""

    low: float
    high: float
    method: str


class CardMetric(Frozen):
    """A metric of the final test, its interval, and the standard deviation of the noise on it; None where unknown."""

    value: float | None
    interval: CardInterval | None = None
    noise: float | None = None


class CardPoint(Frozen):
    """An operating point: its threshold on the score, where it comes from, and what it did to the test's patients.

    ``missing`` says why there is no threshold. Scores from the threshold on are taken for positive.
    """

    name: str
    wanted: str
    threshold: float | None
    validated_round: int | None
    missing: str | None
    figures: dict[str, float | None]
    intervals: dict[str, CardInterval | None]


class CardBin(Frozen):
    """Patients of the test with a score from ``low`` to ``high``: how many, their mean score, the positive share."""

    low: float
    high: float
    num_patients: float
    predicted: float | None
    observed: float | None
    interval: CardInterval | None


class CardOutput(Frozen):
    """What the test says of one output: the question, a class or a finding."""

    name: str
    num_negative: float
    num_positive: float
    points: tuple[CardPoint, ...] = Field(strict=False)
    calibration: tuple[CardBin, ...] = Field(strict=False)


class CardGroup(Frozen):
    """The model on the test's patients of one group, as ``female``, and of one attribute, as ``sex``."""

    attribute: str
    name: str
    metrics: dict[str, CardMetric]


class CardPrivacy(Frozen):
    """What the run promised: a training patient by ε and δ, validation and test patients by the ε of evaluation.

    ``unit`` is what counts as one patient. No sum of fewer than ``min_sites_in_sum`` hospitals was opened, as long as
    not more than ``num_colluding`` of them work together with the server.
    """

    mode: Literal["none", "local", "distributed"]
    unit: str
    epsilon: float | None
    delta: float | None
    noise_multiplier: float | None
    evaluation_epsilon: float | None
    evaluation_noised: bool
    min_sites_in_sum: int
    num_colluding: int


class ModelCard(Frozen):
    """All that is known of a model beside its weights.

    Attributes:
        study: the whole of it, which says how images are prepared and which network it is.
        study_hash: the study's identity, as hospitals approved it.
        manifest_hash: of names and shapes of the trained weights, and of the others' values.
        rounds: that were trained; the model is that of ``kept_round``.
        num_sites: hospitals that were asked to train.
        outputs: what each score is the probability of, in the order of the model's outputs.
        activation: what makes scores of the model's outputs.
        tested: sum of the final test's patients, as the server knows it, or None where there was no test.
        test: metrics of the final test; those of one class or finding have its name behind a slash.
        test_noise: standard deviation of the noise on each count of the test, in patients; 0 where they are exact.
        by_output: operating points and calibration, where scores are judged.
        subgroups: those that may be told of.
        limits: sentences: what was not looked at.
        versions: of what trained it.
    """

    format: Literal["collegium-model-2"] = FORMAT
    intended_use: str = INTENDED_USE
    study: Study
    study_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    manifest_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    run_id: str
    rounds: int = Field(ge=0)
    kept_round: int = Field(ge=0)
    num_sites: int = Field(ge=0)
    privacy: CardPrivacy
    outputs: tuple[str, ...] = Field(min_length=1, strict=False)
    activation: Literal["sigmoid", "softmax"]
    tested: float | None
    test: dict[str, CardMetric]
    test_noise: float
    by_output: tuple[CardOutput, ...] = Field(default=(), strict=False)
    subgroups: tuple[CardGroup, ...] = Field(default=(), strict=False)
    limits: tuple[str, ...] = Field(strict=False)
    versions: dict[str, str]

    @model_validator(mode="after")
    def _of_its_study(self) -> Self:
        if self.study.hash != self.study_hash:
            raise ValueError("study_hash is not that of the study in it")
        return self

    def output(self, name: str) -> CardOutput | None:
        """What the test says of an output; None where it says nothing."""
        return next((one for one in self.by_output if one.name == name), None)

    def points(self, output: str) -> tuple[CardPoint, ...]:
        """The operating points of an output that have a threshold."""
        found = self.output(output)
        return () if found is None else tuple(one for one in found.points if one.threshold is not None)

    def statement(self, output: str, score: float) -> str | None:
        """What the test showed of patients with such a score, in a sentence.

        None where there was no test, where fewer than `MIN_STATEMENT_PATIENTS` had one, or where the interval around
        their share is wider than `WIDEST_STATEMENT`, as few patients or much noise make it.
        """
        found = self.output(output)
        group = None if found is None else _bin_of(found.calibration, score)
        if found is None or group is None or group.observed is None or group.interval is None:
            return None
        width = group.interval.high - group.interval.low
        if group.num_patients < MIN_STATEMENT_PATIENTS or width > WIDEST_STATEMENT:
            return None
        about = "about " if self.test_noise else ""
        everyone = max(found.num_negative + found.num_positive, group.num_patients)
        return (
            f"In the study's test {about}{group.observed * group.num_patients:.0f} of {about}{group.num_patients:.0f} "
            f"patients with a score of {group.low:.3g} to {group.high:.3g} had {_quoted(output)} (95 % interval "
            f"{group.interval.low:.0%} to {group.interval.high:.0%}); of all its patients "
            f"{about}{found.num_positive / everyone:.0%} had."
        )

    def statements(self, scores: Mapping[str, float]) -> dict[str, str]:
        """The statements of several outputs' scores, without those of which there is none."""
        found = {output: self.statement(output, score) for output, score in scores.items()}
        return {output: sentence for output, sentence in found.items() if sentence is not None}

    def to_json(self) -> str:
        """The one encoding that the file's digest is over: keys sorted, no spaces, defaults written out, ASCII."""
        values = self.model_dump(mode="json")
        return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the card of its JSON.

        Raises:
            CardError: it is no card of this format.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise CardError(visible(f"{where}: {first['msg']}")) from None


def _quoted(output: str) -> str:
    return "a positive label" if output == "positive" else f"“{output}”"


def _bin_of(bins: tuple[CardBin, ...], score: float) -> CardBin | None:
    """The one that a score lies in; the last one holds its upper end."""
    for place, one in enumerate(bins):
        if one.low <= score < one.high or (place == len(bins) - 1 and score == one.high):
            return one
    return None
