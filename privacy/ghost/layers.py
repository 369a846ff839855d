"""Which layers are watched, and how. What cannot be watched is refused by name before anything is computed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from privacy.ghost.convolution import CONVOLUTIONS, ConvolutionLayer
from privacy.ghost.errors import UnsupportedModelError
from privacy.ghost.linear import LinearLayer
from privacy.ghost.normalisation import GroupNormLayer, LayerNormLayer
from privacy.ghost.other_layers import OtherLayer
from privacy.ghost.passes import Pass


class Layer(Protocol):
    """Does what a module does, and keeps what its weights' gradients need."""

    def forward(self, inputs: Tensor, run: Pass) -> Tensor:
        """Map inputs to outputs, both with the rows as first axis."""
        ...


_LAYERS: dict[type[nn.Module], Callable[..., Layer]] = {
    **dict.fromkeys(CONVOLUTIONS, ConvolutionLayer),
    nn.Linear: LinearLayer,
    nn.GroupNorm: GroupNormLayer,
    nn.LayerNorm: LayerNormLayer,
}
"""A subclass is another layer: its forward may do something else."""


class Watched:
    """The layers of *model* that have trainable weights.

    Raises:
        UnsupportedModelError: a weight belongs to two layers, or to a module with other layers in it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers: list[tuple[str, nn.Module, Layer]] = []
        owners: dict[nn.Parameter, str] = {}
        for name, module in model.named_modules():
            own = {key: weight for key, weight in module._parameters.items() if weight is not None}
            for key, weight in own.items():
                if weight in owners:
                    raise UnsupportedModelError(
                        f"weight {name}.{key} is tied to {owners[weight]}; give each layer weights of its own"
                    )
                owners[weight] = f"{name}.{key}"
            if any(weight.requires_grad for weight in own.values()):
                self._layers.append((name, module, _layer(name, module, set(own))))

    @contextmanager
    def watching(self, run: Pass) -> Iterator[None]:
        """Have the layers keep what *run* needs, within the block; afterwards they are as they were."""
        begun = []
        try:
            for name, module, layer in self._layers:
                if "forward" in vars(module):
                    raise UnsupportedModelError(
                        f"the forward of layer {name} was replaced; leave it as it is"
                    )
                object.__setattr__(module, "forward", _watching(name, layer, run))
                begun.append(module)
            yield
        finally:
            for module in begun:
                del module.forward


def _layer(name: str, module: nn.Module, own: set[str]) -> Layer:
    known = _LAYERS.get(type(module))
    if known is not None and "weight" in own and own <= {"weight", "bias"}:
        return known(name, module)
    if any(True for child in module.children() for _ in child.parameters()):
        raise UnsupportedModelError(
            f"module {name or 'at the top'} ({type(module).__name__}) has weights of its own beside other layers; put "
            "them into a layer of their own"
        )
    return OtherLayer(name, module, module.forward)


def _watching(name: str, layer: Layer, run: Pass) -> Callable[..., Tensor]:
    def forward(*inputs: Any, **named: Any) -> Tensor:
        return layer.forward(run.enter(name, (*inputs, *named.values())), run)

    return forward
