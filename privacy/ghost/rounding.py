"""What rounding can do to a norm, and the margin that keeps a patient's contribution below the bound all the same.

Gradients are float32, u = 2⁻²⁴. Where a patient's gradient G is at hand its norm is the root of a float64 sum of
squares of norms, each of at most 64 entries in float32. In whatever order 64 squares are added, their sum is off by at
most a factor 1 + 64.1 u (Higham 2002, 3.1), its root by 1 + 33.1 u with the rounding of the root itself. The factor is
computed in float64, rounded to float32 (1 + u) and multiplied with each entry (1 + u). What a patient contributes is
therefore at most C (1 − η)(1 + 36 u) < C for η = 2⁻¹⁸ = 64 u. Sums over physical batches are float64.

Where the norm comes from Gram matrices, G is never at hand. The norm is computed from Σ (AAᵀ)∘(ggᵀ) and the
contribution anew as a sum over positions, each with rounding of its own, and both may cancel. With
R² = Σₜ |aₜ|² |gₜ|², the sum that would be there without any cancelling, and roundings that are independent with mean
zero, the errors are about

* u √(D + p) R² in the sum of products, for (AAᵀ)ₛₜ and (ggᵀ)ₛₜ are sums of D and p products, and the products of two
  semidefinite matrices have a Frobenius norm of at most their trace R²;
* u √T R in the norm of the contribution, a sum over T positions.

Both are added to the norm (Higham, Mary 2019, for the √). In the worst case of all roundings in one direction they
would be D + p and T instead of the roots; that is not covered, and has not been seen to happen.
"""

import math

import torch
from torch import Tensor

UNIT = 2.0**-24
MARGIN = 2.0**-18
"""η: gradients are clipped to C · (1 − η)."""
_RUN = 64


def squared_norms(samples: Tensor) -> Tensor:
    """Return the squared norm of each row of *samples*, shape (n, ...) float32, as float64 of shape (n,)."""
    flat = samples.reshape(len(samples), -1)
    num_runs = flat.shape[1] // _RUN
    head = flat[:, : num_runs * _RUN].reshape(len(flat), num_runs, _RUN)
    parts: Tensor = torch.linalg.vector_norm(head, dim=-1).double().square_().sum(-1)
    if num_runs * _RUN < flat.shape[1]:
        rest = torch.linalg.vector_norm(flat[:, num_runs * _RUN :], dim=-1).double().square_()
        parts = parts + rest
    return parts


def with_allowance(squared: Tensor, uncancelled: Tensor, *, num_features: int, num_positions: int) -> Tensor:
    """Return squared norms from Gram matrices, raised by what rounding may have taken.

    Args:
        squared: Σ (AAᵀ)∘(ggᵀ) as computed, float64, any shape.
        uncancelled: R², of the same shape.
        num_features: D + p, the lengths of the products behind the two Gram matrices.
        num_positions: T.
    """
    raised = squared.clamp(min=0.0) + UNIT * math.sqrt(num_features) * uncancelled
    norms: Tensor = raised.sqrt() + UNIT * math.sqrt(num_positions) * uncancelled.sqrt()
    return norms.square()


def clip_factors(norms: Tensor, *, max_grad_norm: float) -> tuple[Tensor, Tensor]:
    """Return the factor of each patient, float64, and whether the patient's norm is finite; if not it is 0.

    Args:
        norms: of the whole gradients, float64, shape (patients,).
        max_grad_norm: the bound C.
    """
    finite = norms.isfinite()
    bound = max_grad_norm * (1.0 - MARGIN)
    return torch.where(finite, bound / norms.clamp(min=bound), 0.0), finite
