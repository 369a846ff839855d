"""Norms of per-patient gradients that are matrix products, and which way to them is cheaper.

A linear map that sees T positions of D features and gives p features has the gradient G = Σₜ gₜ aₜᵀ, p × D, for each
patient: a convolution with its unfolded input, a linear layer with its input. Either G is formed (T · D · p products,
and D · p numbers for each patient), or |G|² = Σₛₜ (aₛ·aₜ)(gₛ·gₜ) comes from the Gram matrices (T² · (D + p) products,
T² numbers), and the clipped sum from a product over all patients.
"""

from enum import StrEnum

import torch
from torch import Tensor

from privacy.ghost.rounding import squared_norms, with_allowance

PRODUCTS_IN_A_PASS = 12
"""A number read or written costs as much as so many products: measured on processors, near enough on devices."""


class Norms(StrEnum):
    """How norms of matrix products are computed."""

    CHEAPEST = "cheapest"
    SAMPLES = "samples"
    GRAM = "gram"


def takes_samples(
    norms: Norms, *, num_positions: int, num_inputs: int, num_outputs: int, num_rows: int = 1
) -> bool:
    """Whether to form each patient's gradient rather than Gram matrices.

    Args:
        norms: the choice, if it is fixed.
        num_positions: T.
        num_inputs: D.
        num_outputs: p.
        num_rows: images of a patient. Each forms a gradient; in Gram matrices their positions stand side by side.
    """
    if norms is not Norms.CHEAPEST:
        return norms is Norms.SAMPLES
    positions, size = num_rows * num_positions, num_inputs * num_outputs
    products = positions * size
    by_samples = products + 4 * num_rows * size * PRODUCTS_IN_A_PASS
    squares = positions**2
    by_gram = products + squares * (num_inputs + num_outputs) + 4 * squares * PRODUCTS_IN_A_PASS
    return by_samples < by_gram


def gram_squared_norms(inputs: Tensor, gradients: Tensor) -> Tensor:
    """Return |G|² from Gram matrices, with an allowance for rounding, float64.

    Args:
        inputs: float32, shape (n, D, T), any strides.
        gradients: float32, shape (n, p, T), any strides.

    Returns:
        shape (n,).
    """
    if inputs.shape[2] == 1:
        squared = squared_norms(inputs) * squared_norms(gradients)
        return with_allowance(squared, squared, num_features=1, num_positions=1)
    gram = torch.bmm(inputs.transpose(1, 2), inputs)
    return gram_product(gram, gradients, num_inputs=inputs.shape[1])


def gram_product(gram: Tensor, gradients: Tensor, *, num_inputs: int) -> Tensor:
    """Return Σ (AAᵀ)∘(ggᵀ), with an allowance for rounding, float64.

    Args:
        gram: AAᵀ, float32, shape (n, T, T); it is used up.
        gradients: g, float32, shape (n, p, T), any strides.
        num_inputs: D, the length of the products in *gram*.

    Returns:
        shape (n,).
    """
    gram.mul_(torch.bmm(gradients.transpose(1, 2), gradients))
    uncancelled = gram.diagonal(dim1=1, dim2=2).sum(-1, dtype=torch.float64)
    squared = gram.sum(-1).sum(-1, dtype=torch.float64)
    return with_allowance(
        squared, uncancelled, num_features=num_inputs + gradients.shape[1], num_positions=gram.shape[1]
    )
