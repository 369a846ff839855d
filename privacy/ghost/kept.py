"""What is kept of a parameter's gradient from the backward pass until the factors of all patients are known."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from privacy.ghost.patients import Rows
from privacy.ghost.rounding import squared_norms


@dataclass(frozen=True, slots=True)
class Factors:
    """By what each patient's gradient is multiplied.

    Attributes:
        of_patients: float32, shape (patients,), 0 where the patient's gradient is not finite.
        of_rows: the same for each row of the batch, shape (rows,).
        finite_patients: shape (patients,), or None if all are.
        finite_rows: shape (rows,), or None if all are.
    """

    of_patients: Tensor
    of_rows: Tensor
    finite_patients: Tensor | None
    finite_rows: Tensor | None

    @classmethod
    def of(cls, factors: Tensor, finite: Tensor, rows: Rows) -> "Factors":
        """Return the factors of patients, float64, for *rows*; looks at the device once."""
        single = factors.float()
        broken = None if bool(finite.all()) else finite
        return cls(
            of_patients=single,
            of_rows=rows.of_each_row(single),
            finite_patients=broken,
            finite_rows=None if broken is None else rows.of_each_row(broken),
        )

    def weighted(self, values: Tensor) -> Tensor:
        """Multiply each row of *values*, shape (rows, ...); rows of patients left out become zero."""
        return self.cleaned(values) * self.of_rows.view(-1, *(1,) * (values.ndim - 1))

    def cleaned(self, values: Tensor) -> Tensor:
        """Put zero for the rows of patients left out: zero times NaN is NaN."""
        return _without(values, self.finite_rows)


class Kept(Protocol):
    """One parameter's part of the patients' gradients."""

    @property
    def squared_norms(self) -> Tensor:
        """Float64, shape (patients,)."""
        ...

    def clipped_sum(self, factors: Factors) -> Tensor:
        """Return the sum of the patients' gradients, each times its factor, float32, as many as the parameter has."""
        ...


class KeptSamples:
    """The gradients of the patients themselves.

    Args:
        samples: float32, shape (rows, ...).
        rows: whose they are.
        axes: the order in which the parameter has the axes of a sample, where it is another.
    """

    def __init__(self, samples: Tensor, rows: Rows, *, axes: tuple[int, ...] | None = None) -> None:
        self._shape, self._axes = samples.shape[1:], axes
        self.flat = rows.summed(samples).flatten(1)

    @property
    def squared_norms(self) -> Tensor:
        """Float64, shape (patients,)."""
        return squared_norms(self.flat)

    def clipped_sum(self, factors: Factors) -> Tensor:
        """Return the sum of the patients' gradients, each times its factor."""
        return self.shaped(weighted_sum(self.flat, factors))

    def shaped(self, total: Tensor) -> Tensor:
        """Give a sum over the patients of `flat` the parameter's shape."""
        total = total.view(self._shape)
        return total if self._axes is None else total.permute(self._axes)


def weighted_sum(samples: Tensor, factors: Factors) -> Tensor:
    """Return the sum of the patients' *samples*, shape (patients, n), each times its factor: shape (n,)."""
    return factors.of_patients @ _without(samples, factors.finite_patients)


def _without(values: Tensor, finite: Tensor | None) -> Tensor:
    if finite is None:
        return values
    return torch.where(finite.view(-1, *(1,) * (values.ndim - 1)), values, 0.0)
