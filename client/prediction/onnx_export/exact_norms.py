"""GroupNorm in operations whose rounding stays small wherever they are computed.

ONNX Runtime computes the variance of a group in one pass, and its mean as one long sum. Where an image is the same
everywhere, as around a body, GroupNorm divides what rounding left of that by the root of its ε, and a U-Net of volumes
is off by more than 10⁻⁴. Here deviations are taken first, and each mean is the mean of means along one axis.
"""

import copy

import torch
from torch import Tensor, nn

from shared_models.networks.network import Network


class ExactGroupNorm(nn.Module):
    """The same as the GroupNorm *of*, whose weights it shares."""

    def __init__(self, of: nn.GroupNorm) -> None:
        super().__init__()
        self.num_groups, self.eps = of.num_groups, of.eps
        self.weight, self.bias = of.weight, of.bias

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, ...) to the same shape."""
        groups = features.reshape(features.shape[0], self.num_groups, -1, *features.shape[2:])
        deviations = groups - _mean(groups)
        normed = deviations * torch.rsqrt(_mean(deviations * deviations) + self.eps)
        of_channels = (1, -1, *[1] * (features.dim() - 2))
        scaled: Tensor = normed.reshape(features.shape) * self.weight.reshape(of_channels)
        return scaled + self.bias.reshape(of_channels)


def _mean(groups: Tensor) -> Tensor:
    """Over all axes behind the groups, one after the other."""
    for axis in range(groups.dim() - 1, 1, -1):
        groups = groups.mean(axis, keepdim=True)
    return groups


def with_exact_norms(model: Network) -> Network:
    """Return a copy of the model in which each GroupNorm is an `ExactGroupNorm`."""
    found = copy.deepcopy(model)
    for module in list(found.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, ExactGroupNorm(child))
    return found
