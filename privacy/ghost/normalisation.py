"""GroupNorm and LayerNorm: the gradients of scale and shift are few numbers for each patient."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privacy.ghost.kept import KeptSamples
from privacy.ghost.passes import Pass


class GroupNormLayer:
    """Watches one GroupNorm.

    Normalising n images of c channels in g groups is normalising one image of n · c channels in n · g groups, and then
    each patient has a scale and a shift of its own, whose gradient torch computes on its way.
    """

    def __init__(self, name: str, module: nn.GroupNorm) -> None:
        self._name, self._module = name, module

    def forward(self, inputs: Tensor, run: Pass) -> Tensor:
        """Do what the module does, with a copy of scale and shift for each row.

        Args:
            inputs: shape (rows, channels, ...).
            run: the pass under way.
        """
        module, num = self._module, len(inputs)
        outputs = F.group_norm(
            inputs.reshape(1, num * module.num_channels, *inputs.shape[2:]),
            num * module.num_groups,
            run.for_each_row(module.weight),
            run.for_each_row(module.bias),
            module.eps,
        )
        return outputs.view(inputs.shape)


class LayerNormLayer:
    """Watches one LayerNorm."""

    def __init__(self, name: str, module: nn.LayerNorm) -> None:
        self._name, self._module = name, module

    def forward(self, inputs: Tensor, run: Pass) -> Tensor:
        """Do what the module does, and keep what its gradient needs.

        Args:
            inputs: shape (rows, ..., normalised shape).
            run: the pass under way.
        """
        module = self._module
        bias = None if module.bias is None else module.bias.detach()
        weight = module.weight.detach()
        outputs = F.layer_norm(inputs, module.normalized_shape, weight, bias, module.eps)
        kept = run.still(self._name, inputs)
        return run.watch(outputs, lambda gradients: self._receive(kept(), gradients, run))

    def _receive(self, inputs: Tensor, gradients: Tensor, run: Pass) -> None:
        module, gradients = self._module, gradients.float()
        positions = tuple(range(1, inputs.ndim - len(module.normalized_shape)))
        if module.bias is not None and module.bias.requires_grad:
            run.deliver(module.bias, KeptSamples(_summed(gradients, positions), run.rows))
        if module.weight.requires_grad:
            normalised = F.layer_norm(inputs.float(), module.normalized_shape, eps=module.eps)
            run.deliver(module.weight, KeptSamples(_summed(gradients * normalised, positions), run.rows))


def _summed(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    return torch.sum(values, axes) if axes else values
