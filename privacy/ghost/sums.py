"""The clipped sum of one physical batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privacy.ghost.kept import Factors, KeptSamples, weighted_sum
from privacy.ghost.layers import Watched
from privacy.ghost.matrices import Norms
from privacy.ghost.passes import Pass
from privacy.ghost.patients import Rows
from privacy.ghost.rounding import clip_factors, squared_norms


@dataclass(frozen=True, slots=True)
class Clipped:
    """One physical batch.

    Attributes:
        norms: of the patients' whole gradients before clipping, float64, shape (patients,), raised by what rounding may
            have taken; never leaves the site.
        parts: the clipped sum, float32, one tensor a trainable parameter; None where a parameter had no gradient.
    """

    norms: Tensor
    parts: list[Tensor | None]


class GhostClipping:
    """Clipped sums of per-patient gradients of one model.

    Args:
        model: whose layers are watched during each pass; between passes it is as it was.
        norms: how norms are computed; anything but the default is for tests.

    Raises:
        UnsupportedModelError: a weight cannot be watched.
    """

    def __init__(self, model: nn.Module, *, norms: Norms = Norms.CHEAPEST) -> None:
        self.parameters: Sequence[nn.Parameter] = [
            weight for weight in model.parameters() if weight.requires_grad
        ]
        self._names: dict[Tensor, str] = {
            weight: name for name, weight in model.named_parameters() if weight.requires_grad
        }
        self._watched = Watched(model)
        self._norms = norms

    def clipped(self, losses: Callable[[], Tensor], rows: Rows, *, max_grad_norm: float) -> Clipped:
        """Run the model forward and backward once, and return the clipped sum.

        Args:
            losses: calls the model; returns a loss for each row, shape (rows,), of which row i depends on image i only.
            rows: whose images they are. With several rows a patient, the patient's gradient is the sum of theirs.
            max_grad_norm: the bound C.

        Raises:
            UnsupportedModelError: a weight has not exactly one gradient in this pass, or has a part of it elsewhere.
        """
        for weight in self.parameters:
            weight.grad = None
        run = Pass(rows, self._names, norms=self._norms, device=self.parameters[0].device)
        with self._watched.watching(run):
            loss = losses().sum()
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        run.finish()
        return _weighted(run, self.parameters, max_grad_norm)


def _weighted(run: Pass, parameters: Sequence[nn.Parameter], max_grad_norm: float) -> Clipped:
    """Put the parts of all layers together. Small ones are treated as one, for on a device each call costs."""
    kept = run.kept
    if not kept:
        nothing = parameters[0].new_zeros(run.rows.num_patients, dtype=torch.float64)
        return Clipped(nothing, [None] * len(parameters))
    small = {
        weight: part
        for weight, part in kept.items()
        if isinstance(part, KeptSamples) and part.flat.shape[1] <= _SMALL
    }
    together = torch.cat([part.flat for part in small.values()], 1) if small else None
    squares = [part.squared_norms for weight, part in kept.items() if weight not in small]
    if together is not None:
        squares.append(squared_norms(together))
    norms = torch.stack(squares).sum(0).sqrt()
    factors = Factors.of(*clip_factors(norms, max_grad_norm=max_grad_norm), run.rows)
    sums: dict[Tensor, Tensor] = {}
    if together is not None:
        totals = torch.split(weighted_sum(together, factors), [part.flat.shape[1] for part in small.values()])
        sums = {
            weight: part.shaped(total) for (weight, part), total in zip(small.items(), totals, strict=True)
        }
    for weight in [weight for weight in kept if weight not in small]:
        sums[weight] = kept.pop(weight).clipped_sum(factors)  # and its tensors are let go of
    return Clipped(norms, [sums.get(weight) for weight in parameters])


_SMALL = 2**14
"""Numbers for each patient."""
