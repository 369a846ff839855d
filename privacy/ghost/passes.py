"""One forward and one backward pass: what the layers kept of it, and the checks that it was complete."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from privacy.ghost.errors import UnsupportedModelError
from privacy.ghost.kept import Kept, KeptSamples
from privacy.ghost.matrices import Norms, takes_samples
from privacy.ghost.patients import Rows


class Pass:
    """Collects what the layers keep.

    Args:
        rows: of the batch.
        names: of the trainable parameters.
        norms: how norms of matrix products are computed.
        device: of the model.
    """

    def __init__(
        self, rows: Rows, names: Mapping[Tensor, str], *, norms: Norms, device: torch.device
    ) -> None:
        self.rows = rows
        self.kept: dict[Tensor, Kept] = {}
        self._names, self._norms = names, norms
        self._called: set[str] = set()
        self._anchor = torch.zeros((), device=device, requires_grad=True)

    def enter(self, layer: str, inputs: tuple[object, ...]) -> Tensor:
        """Return the one tensor that the layer is called with.

        Raises:
            UnsupportedModelError: it was called before in this pass, gets something else, or other rows.
        """
        if layer in self._called:
            raise UnsupportedModelError(
                f"layer {layer} is called more than once for one batch, so that its gradient has several parts; use a "
                "layer of its own for each call, and no activation checkpointing"
            )
        self._called.add(layer)
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise UnsupportedModelError(
                f"layer {layer} is not called with one tensor; only such layers are supported"
            )
        if inputs[0].ndim < 2 or len(inputs[0]) != self.rows.num_rows:
            raise UnsupportedModelError(
                f"layer {layer} sees a tensor of shape {tuple(inputs[0].shape)} for {self.rows.num_rows} images; the "
                "first axis must be the images', everywhere"
            )
        return inputs[0]

    def still(self, layer: str, inputs: Tensor) -> Callable[[], Tensor]:
        """Keep *inputs* until the one call of what is returned, which gives them back and lets go of them.

        Raises:
            UnsupportedModelError: from that call, if they were changed in place in the meantime.
        """
        held, version = [inputs.detach()], inputs._version

        def give_back() -> Tensor:
            found = held.pop()
            if found._version != version:
                raise UnsupportedModelError(
                    f"the input of layer {layer} is changed in place after the layer has seen it; use an operation "
                    "that is not in place"
                )
            return found

        return give_back

    def watch(self, outputs: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
        """Have *receive* called with the gradient of *outputs* in the backward pass; return what to pass on."""
        if not torch.is_grad_enabled():
            return outputs
        if not outputs.requires_grad:
            outputs = _Rooted.apply(  # type: ignore[no-untyped-call]
                outputs.clone() if outputs._is_view() else outputs, self._anchor
            )
        outputs.register_hook(receive)  # type: ignore[no-untyped-call]
        return outputs

    def for_each_row(self, parameter: Tensor) -> Tensor:
        """Return the parameter, shape (n,), once for each row, shape (rows · n,); each row's gradient is kept."""
        rows = self.rows
        copies = parameter.detach().repeat(rows.num_rows)
        if parameter.requires_grad:
            copies.requires_grad_()
            copies.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: self.deliver(
                    parameter, KeptSamples(gradient.float().view(rows.num_rows, -1), rows)
                )
            )
        return copies

    def takes_samples(self, *, num_positions: int, num_inputs: int, num_outputs: int) -> bool:
        """Whether a layer with these sizes forms each patient's gradient; see `matrices.takes_samples`."""
        return takes_samples(
            self._norms,
            num_positions=num_positions,
            num_inputs=num_inputs,
            num_outputs=num_outputs,
            num_rows=self.rows.most_rows,
        )

    def deliver(self, parameter: Tensor, kept: Kept) -> None:
        """Take a parameter's part of the patients' gradients.

        Raises:
            UnsupportedModelError: there is one already.
        """
        if parameter in self.kept:
            raise UnsupportedModelError(
                f"weight {self._names[parameter]} has more than one gradient in a pass"
            )
        self.kept[parameter] = kept

    def finish(self) -> None:
        """Check that no gradient has gone another way.

        Raises:
            UnsupportedModelError: a weight is used outside of the layer that it belongs to.
        """
        stray = [name for weight, name in self._names.items() if weight.grad is not None]
        for weight in self._names:
            weight.grad = None
        if stray:
            raise UnsupportedModelError(
                f"weight {stray[0]} is used outside of the layer that it belongs to, or computed from another; "
                "use each weight in its own layer's forward only"
            )


class _Rooted(torch.autograd.Function):
    """Gives a tensor without a gradient one, so that the backward pass reaches the first layer; copies nothing."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, outputs: Tensor, anchor: Tensor) -> Tensor:
        """Return *outputs*, which need a gradient from now on."""
        ctx.mark_dirty(outputs)
        return outputs

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[None, None]:
        """End here."""
        return None, None
