"""Operating points: thresholds that a study names, or what a threshold is to reach."""

from typing import Self

from pydantic import Field, model_validator

from shared_models.configuration import Frozen
from shared_models.tasks.task import Name


class OperatingPoint(Frozen):
    """A threshold on the score, by itself or by what it is to reach on the validation patients of all sites.

    Of several classes or findings each has its own threshold, on its own score.
    """

    name: Name
    threshold: float | None = Field(default=None, gt=0.0, lt=1.0)
    sensitivity: float | None = Field(default=None, gt=0.0, lt=1.0)
    specificity: float | None = Field(default=None, gt=0.0, lt=1.0)

    @property
    def is_target(self) -> bool:
        """Whether validation patients decide where it lies."""
        return self.threshold is None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [self.threshold, self.sensitivity, self.specificity]
        if sum(one is not None for one in given) != 1:
            raise ValueError("say exactly one of: threshold, sensitivity, specificity")
        return self
