"""A map of what spoke for an output."""

from dataclasses import dataclass, field
from enum import StrEnum

from client.prediction.reading import Plane


class Method(StrEnum):
    """How a map is made."""

    GRAD_CAM = "grad-cam"
    OCCLUSION = "occlusion"

    @property
    def heading(self) -> str:
        """As pictures name it."""
        return {"grad-cam": "Grad-CAM", "occlusion": "Occlusion"}[self.value]

    @property
    def words(self) -> str:
        """What a value of such a map is."""
        return {
            "grad-cam": "log odds that the whole image would speak with if it were everywhere as it is here",
            "occlusion": "log odds that are lost when this place is covered by the image's mean grey",
        }[self.value]


class ExplanationRefused(Exception):
    """A model's sayings cannot be explained in this way. The message says in one sentence why, and what can be."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attribution:
    """What spoke for one output of a model, place by place.

    Attributes:
        method: which made it.
        output: of the model, by its name in the card.
        values: float32, shape of the prepared image without its channels, at least 0, in log odds. 0 where nothing
            spoke for the output, or something against it.
    """

    method: Method
    output: str
    values: Plane = field(repr=False)

    @property
    def largest(self) -> float:
        """Of the values, in log odds."""
        return float(self.values.max())
