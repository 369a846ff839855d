"""Any other layer that maps one tensor to one: the gradient of each patient, by Opacus' formula or by torch.func."""

from collections.abc import Callable

import torch
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from privacy.ghost.kept import KeptSamples
from privacy.ghost.passes import Pass


class OtherLayer:
    """Watches a layer that is none of those with a formula here.

    Args:
        module: owns parameters, and has no other module with parameters in it.
        original: its forward.
    """

    def __init__(self, name: str, module: nn.Module, original: Callable[[Tensor], Tensor]) -> None:
        self._name, self._module, self._original = name, module, original

    def forward(self, inputs: Tensor, run: Pass) -> Tensor:
        """Do what the module does, and keep what its gradient needs.

        Args:
            inputs: shape (rows, ...).
            run: the pass under way.
        """
        outputs = self._called(_detached(self._module), inputs)
        kept = run.still(self._name, inputs)
        return run.watch(outputs, lambda gradients: self._receive(kept(), gradients, run))

    def _called(self, weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        outputs: Tensor = functional_call(_Bare(self._module, self._original), _inner(weights), (inputs,))
        return outputs

    def _receive(self, inputs: Tensor, gradients: Tensor, run: Pass) -> None:
        if inputs.is_floating_point():
            inputs = inputs.float()
        formula = GradSampleModule.GRAD_SAMPLERS.get(type(self._module))
        if formula is None or not {name for name, _ in self._module.named_parameters()} <= {"weight", "bias"}:
            samples = self._by_vmap(inputs, gradients.float())
        else:
            samples = formula(self._module, [inputs], gradients.float())
        for weight in self._module.parameters():
            if weight.requires_grad:
                run.deliver(weight, KeptSamples(samples[weight].float(), run.rows))

    def _by_vmap(self, inputs: Tensor, gradients: Tensor) -> dict[nn.Parameter, Tensor]:
        weights = _detached(self._module)

        def of_one(row: Tensor, gradient: Tensor) -> dict[str, Tensor]:
            pull = vjp(lambda values: self._called(values, row[None]), weights)[1]
            found: dict[str, Tensor] = pull(gradient[None])[0]
            return found

        with torch.enable_grad():
            found = vmap(of_one)(inputs, gradients)
        return {weight: found[name].detach() for name, weight in self._module.named_parameters()}


class _Bare(nn.Module):
    """The module with its own forward in place of the watching one."""

    def __init__(self, module: nn.Module, original: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = module
        self._original = original

    def forward(self, inputs: Tensor) -> Tensor:
        """Call the original forward."""
        return self._original(inputs)


def _detached(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in module.named_parameters()}


def _inner(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"inner.{name}": weight for name, weight in weights.items()}
