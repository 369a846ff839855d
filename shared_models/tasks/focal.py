"""The focal loss: what the model already knows counts less."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def focused(losses: "Tensor", focusing: float) -> "Tensor":
    """Return −(1 − p)^γ log p of cross-entropies −log p, each by itself; with γ = 0 they stay as they are.

    Args:
        losses: unweighted cross-entropies, not below 0, any shape.
        focusing: γ, 0 or at least 1, so that the gradient stays finite where p is 1.

    Source: Lin et al. (2017), "Focal loss for dense object detection", equation 4.
    """
    if not focusing:
        return losses
    return (-losses).expm1().neg().pow(focusing) * losses
