"""Linear layers, with any number of positions between the rows and the features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privacy.ghost.kept import Factors, Kept, KeptSamples
from privacy.ghost.matrices import gram_squared_norms
from privacy.ghost.passes import Pass


class LinearLayer:
    """Watches one linear layer."""

    def __init__(self, name: str, module: nn.Linear) -> None:
        self._name, self._module = name, module

    def forward(self, inputs: Tensor, run: Pass) -> Tensor:
        """Do what the module does, and keep what its gradient needs.

        Args:
            inputs: shape (rows, ..., features).
            run: the pass under way.
        """
        module = self._module
        bias = None if module.bias is None else module.bias.detach()
        outputs = F.linear(inputs, module.weight.detach(), bias)
        kept = run.still(self._name, inputs)
        return run.watch(outputs, lambda gradients: self._receive(kept(), gradients, run))

    def _receive(self, inputs: Tensor, gradients: Tensor, run: Pass) -> None:
        module = self._module
        inputs = inputs.float().reshape(len(inputs), -1, module.in_features)
        gradients = gradients.float().reshape(len(gradients), -1, module.out_features)
        if module.bias is not None and module.bias.requires_grad:
            run.deliver(module.bias, KeptSamples(gradients.sum(1), run.rows))
        if module.weight.requires_grad:
            run.deliver(module.weight, self._kept(inputs, gradients, run))

    def _kept(self, inputs: Tensor, gradients: Tensor, run: Pass) -> Kept:
        if run.takes_samples(
            num_positions=inputs.shape[1], num_inputs=inputs.shape[2], num_outputs=gradients.shape[2]
        ):
            return KeptSamples(torch.bmm(gradients.transpose(1, 2), inputs), run.rows)
        squared = gram_squared_norms(
            run.rows.side_by_side(inputs.transpose(1, 2)[:, None])[:, 0],
            run.rows.side_by_side(gradients.transpose(1, 2)[:, None])[:, 0],
        )
        return _KeptLinear(inputs, gradients, squared)


class _KeptLinear:
    """A linear layer's input and the gradient of its output, float32, shape (rows, positions, features)."""

    def __init__(self, inputs: Tensor, gradients: Tensor, squared: Tensor) -> None:
        self._inputs, self._gradients = inputs, gradients
        self.squared_norms = squared

    def clipped_sum(self, factors: Factors) -> Tensor:
        """Return the sum of the patients' gradients, each times its factor, as the weight's shape."""
        gradients, inputs = factors.weighted(self._gradients), factors.cleaned(self._inputs)
        return gradients.flatten(0, 1).t() @ inputs.flatten(0, 1)
