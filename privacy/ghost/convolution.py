"""Convolutions and transposed convolutions in one, two or three dimensions, with any stride, dilation and groups.

A transposed convolution is a convolution whose input and output have changed places: the gradient of its weight is that
of the convolution from the output's gradient to the input.
"""

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privacy.ghost.kept import Factors, Kept, KeptSamples
from privacy.ghost.matrices import PRODUCTS_IN_A_PASS, gram_product, gram_squared_norms
from privacy.ghost.passes import Pass
from privacy.ghost.patients import Rows

Convolution: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
Sizes: TypeAlias = tuple[int, ...]
"""One number for each dimension."""
_FUNCTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}
CONVOLUTIONS = tuple(_FUNCTIONS)


class ConvolutionLayer:
    """Watches one convolution. Padding that is not with zeros, or not symmetric, is done before, as torch does it."""

    def __init__(self, name: str, module: Convolution) -> None:
        self._name, self._module = name, module
        self._function = _FUNCTIONS[type(module)]
        self._pads_before = isinstance(module.padding, str) or module.padding_mode != "zeros"
        zeros = (0,) * len(module.kernel_size)
        self._padding = zeros if self._pads_before else tuple(int(size) for size in module.padding)

    def forward(self, inputs: Tensor, run: Pass) -> Tensor:
        """Do what the module does, and keep what its gradient needs.

        Args:
            inputs: shape (rows, channels, ...).
            run: the pass under way.
        """
        module = self._module
        if self._pads_before:
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            inputs = F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
        bias = None if module.bias is None else module.bias.detach()
        options = {"stride": module.stride, "padding": self._padding, "dilation": module.dilation}
        if module.transposed:
            options["output_padding"] = module.output_padding
        outputs = self._function(inputs, module.weight.detach(), bias, groups=module.groups, **options)
        kept = run.still(self._name, inputs)
        return run.watch(outputs, lambda gradients: self._receive(kept(), gradients, run))

    def _receive(self, inputs: Tensor, gradients: Tensor, run: Pass) -> None:
        module = self._module
        if module.bias is not None and module.bias.requires_grad:
            run.deliver(module.bias, KeptSamples(gradients.flatten(2).sum(-1, dtype=torch.float32), run.rows))
        if module.weight.requires_grad:
            run.deliver(module.weight, self._kept(inputs, gradients, run))

    def _kept(self, inputs: Tensor, gradients: Tensor, run: Pass) -> Kept:
        module = self._module
        seen, given = (gradients, inputs) if module.transposed else (inputs, gradients)
        windows = Windows(module, self._padding, seen=seen, given=given)
        if run.takes_samples(
            num_positions=windows.num_positions,
            num_inputs=windows.num_inputs,
            num_outputs=windows.num_outputs,
        ):
            return windows.samples(run.rows)
        squared = windows.squared_norms(run.rows)
        return _KeptConvolution(module, self._padding, inputs, gradients, squared)


class Windows:
    """The windows of *seen* under the kernel, one for each position of *given*.

    Args:
        module: the convolution.
        padding: with zeros, for each dimension.
        seen: what the kernel runs over, shape (rows, channels, ...).
        given: shape (rows, other channels, ...), a position for each window.
    """

    def __init__(self, module: Convolution, padding: tuple[int, ...], *, seen: Tensor, given: Tensor) -> None:
        self._stride, self._dilation = module.stride, module.dilation
        self._kernel, self._groups, self._padding = module.kernel_size, module.groups, padding
        self._seen, self._given = seen, given
        self.num_positions = prod(given.shape[2:])
        self.num_inputs = seen.shape[1] // self._groups * prod(self._kernel)
        self.num_outputs = given.shape[1] // self._groups
        self._is_pointwise = prod(self._kernel) == prod(self._stride) == 1 and not any(padding)
        # Copies are fast where long runs of numbers stay together: channels, or positions of a row.
        self._channels_last = seen.shape[1] // self._groups * self._kernel[-1] >= given.shape[-1]

    def samples(self, rows: Rows) -> KeptSamples:
        """Return the gradient of each row, (weight's first axis, ...) in the order that suits the windows."""
        num, groups = len(self._given), self._groups
        samples = self._given.new_empty(
            (num * groups, self.num_outputs, self.num_inputs), dtype=torch.float32
        )
        for part in self._parts(self.num_inputs * self.num_positions):
            inputs = self._unfolded(part).flatten(0, 1)
            given = self._outputs(part).flatten(0, 1)
            torch.bmm(given, inputs.transpose(1, 2), out=samples[part.start * groups : part.stop * groups])
        channels = self.num_inputs // prod(self._kernel)
        inner = (*self._kernel, channels) if self._channels_last else (channels, *self._kernel)
        dims = len(self._kernel)
        axes = (0, dims + 1, *range(1, dims + 1)) if self._channels_last else None
        return KeptSamples(samples.view(num, groups * self.num_outputs, *inner), rows, axes=axes)

    def squared_norms(self, rows: Rows) -> Tensor:
        """Return the squared norm of each patient's gradient, from Gram matrices, float64."""
        if rows.patient is not None:
            whole = slice(0, len(self._given))
            return _by_patient(
                rows.side_by_side(self._unfolded(whole)), rows.side_by_side(self._outputs(whole))
            )
        if self._prefers_places():
            return self._squared_norms_by_places()
        sizes = self.num_positions * (self.num_inputs + 2 * self.num_positions)
        return torch.cat(
            [_by_patient(self._unfolded(part), self._outputs(part)) for part in self._parts(sizes)]
        )

    def _prefers_places(self) -> bool:
        """Whether the Gram matrix of all places, S², is cheaper than that of the unfolded input."""
        places, taps = prod(self._seen.shape[2:]), prod(self._kernel)
        squares = self.num_positions**2
        by_places = places**2 * self.num_inputs // taps + taps * squares * PRODUCTS_IN_A_PASS
        by_windows = (squares + self.num_positions * PRODUCTS_IN_A_PASS) * self.num_inputs
        return by_places < by_windows

    def _squared_norms_by_places(self) -> Tensor:
        """Add up the Gram matrix of the windows from that of the places that they are made of.

        Two windows' product is the sum, over the taps of the kernel, of the products of two places. Nothing is
        unfolded but the numbers of the places.
        """
        num, groups = len(self._seen), self._groups
        places = prod(self._seen.shape[2:])
        seen = self._seen.float().reshape(num * groups, -1, places)
        gram = torch.bmm(seen.transpose(1, 2), seen)
        # One more place, whose products are zero, stands for the padding.
        gram = F.pad(gram, (0, 1, 0, 1)).flatten(1)
        taken, _ = self._places()
        pairs = (taken[:, :, None] * (places + 1) + taken[:, None, :]).flatten(1)
        if gram.device.type == "cuda":
            of_windows = gram[:, pairs.flatten()].view(len(gram), *pairs.shape).sum(1)
        else:
            of_windows = gram[:, pairs[0]]
            for tap in pairs[1:]:
                of_windows += gram[:, tap]
        given = self._outputs(slice(0, num)).flatten(0, 1)
        squared = gram_product(
            of_windows.view(-1, self.num_positions, self.num_positions), given, num_inputs=self.num_inputs
        )
        return squared.view(num, groups).sum(1)

    def summed_product(self) -> Tensor:
        """Return the sum of the gradients of all rows as one product of matrices, in the weight's shape; one group."""
        num, channels = self._seen.shape[:2]
        taken, used = self._places()
        # One more place, which is zero, stands for the padding.
        places = F.pad(self._seen.reshape(num, channels, -1), (0, 1))[:, :, taken]
        inputs = places.permute(0, 3, 1, 2).reshape(num * self.num_positions, -1)
        given = self._given.reshape(num, self.num_outputs, -1).transpose(1, 2).reshape(len(inputs), -1)
        product = (given.t() @ inputs).view(self.num_outputs, channels, len(taken))
        if len(taken) < len(used):
            whole = product.new_zeros(self.num_outputs, channels, len(used))
            whole[:, :, used] = product
            product = whole
        return product.view(self.num_outputs, channels, *self._kernel)

    def _places(self) -> tuple[Tensor, Tensor]:
        over = _Kernel(self._kernel, self._stride, self._dilation, self._padding)
        return _places(tuple(self._seen.shape[2:]), tuple(self._given.shape[2:]), over, self._seen.device)

    def _parts(self, size: int) -> list[slice]:
        """Rows in parts whose workspace fits, *size* numbers for each row and group."""
        room = _ROOM_CUDA if self._given.device.type == "cuda" else _ROOM_PROCESSOR
        step = max(1, room // (size * self._groups))
        num = len(self._given)
        return [slice(begin, min(begin + step, num)) for begin in range(0, num, step)]

    def _outputs(self, part: slice) -> Tensor:
        """Shape (rows, groups, p, T)."""
        given = self._given[part].float()
        return given.reshape(len(given), self._groups, self.num_outputs, self.num_positions)

    def _unfolded(self, part: slice) -> Tensor:
        """Shape (rows, groups, D, T)."""
        seen, groups = self._seen[part].float(), self._groups
        if self._is_pointwise:
            return seen.reshape(len(seen), groups, self.num_inputs, self.num_positions)
        channels = seen.shape[1] // groups
        out = self._given.shape[2:]
        sizes = [size + 2 * pad for size, pad in zip(seen.shape[2:], self._padding, strict=True)]
        inner = [slice(pad, size - pad) for pad, size in zip(self._padding, sizes, strict=True)]
        if self._channels_last:
            padded = seen.new_zeros(len(seen), *sizes, groups, channels)
            padded[:, *inner] = seen.view(len(seen), groups, channels, *seen.shape[2:]).movedim(
                (1, 2), (-2, -1)
            )
            steps, row, group, channel = padded.stride()[1:-2], padded.stride(0), channels, 1
        else:
            padded = seen
            if any(self._padding) or not seen.is_contiguous():
                padded = seen.new_zeros(len(seen), seen.shape[1], *sizes)
                padded[:, :, *inner] = seen
            steps, row, channel = padded.stride()[2:], padded.stride(0), padded.stride(1)
            group = channels * channel
        over = [step * stride for step, stride in zip(steps, self._stride, strict=True)]
        within = [step * dilation for step, dilation in zip(steps, self._dilation, strict=True)]
        if self._channels_last:
            view = padded.as_strided(
                (len(seen), groups, *out, *self._kernel, channels), (row, group, *over, *within, channel)
            )
            return view.reshape(len(seen), groups, self.num_positions, self.num_inputs).transpose(2, 3)
        view = padded.as_strided(
            (len(seen), groups, channels, *self._kernel, *out), (row, group, channel, *within, *over)
        )
        return view.reshape(len(seen), groups, self.num_inputs, self.num_positions)


_FEW_POSITIONS = 2
"""At so few positions the libraries' weight gradients of convolutions are far slower than a product of matrices."""
_ROOM_PROCESSOR = 2**19
_ROOM_CUDA = 2**26
"""Numbers of workspace: what fits a processor's cache, and what a device has to spare."""


class _Kernel(NamedTuple):
    sizes: Sizes
    stride: Sizes
    dilation: Sizes
    padding: Sizes


@lru_cache(maxsize=512)
def _places(sizes: Sizes, out: Sizes, kernel: _Kernel, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the number of the place that each tap meets at each position, int64, shape (taps that meet any, T).

    Beside it whether each tap of the kernel meets a place at all, shape (taps,); the others meet padding only.
    """
    numbers = torch.arange(prod(sizes)).view(1, 1, *sizes)
    padded = F.pad(
        numbers, [pad for size in reversed(kernel.padding) for pad in (size, size)], value=prod(sizes)
    )
    steps = padded.stride()[2:]
    over = [step * every for step, every in zip(steps, kernel.stride, strict=True)]
    within = [step * every for step, every in zip(steps, kernel.dilation, strict=True)]
    found = padded.as_strided((*kernel.sizes, *out), (*within, *over)).reshape(-1, prod(out))
    used = (found < prod(sizes)).any(1)
    return found[used].to(device), used.to(device)


def _by_patient(inputs: Tensor, outputs: Tensor) -> Tensor:
    squared = gram_squared_norms(inputs.flatten(0, 1), outputs.flatten(0, 1))
    return squared.view(inputs.shape[:2]).sum(1)


class _KeptConvolution:
    """A convolution's input and the gradient of its output; the clipped sum is the weight's gradient over all rows."""

    def __init__(
        self,
        module: Convolution,
        padding: tuple[int, ...],
        inputs: Tensor,
        gradients: Tensor,
        squared: Tensor,
    ) -> None:
        self._module, self._padding = module, padding
        self._inputs, self._gradients = inputs, gradients
        self.squared_norms = squared

    def clipped_sum(self, factors: Factors) -> Tensor:
        """Return the sum of the patients' gradients, each times its factor, as the weight's shape."""
        module = self._module
        inputs, gradients = self._inputs.float(), self._gradients.float()
        if gradients.numel() <= inputs.numel():
            gradients, inputs = factors.weighted(gradients), factors.cleaned(inputs)
        else:
            gradients, inputs = factors.cleaned(gradients), factors.weighted(inputs)
        if prod(gradients.shape[2:]) <= _FEW_POSITIONS and module.groups == 1 and not module.transposed:
            return Windows(module, self._padding, seen=inputs, given=gradients).summed_product()
        _, weight, _ = torch.ops.aten.convolution_backward(
            gradients,
            inputs,
            module.weight.detach(),
            None,
            module.stride,
            self._padding,
            module.dilation,
            module.transposed,
            module.output_padding,
            module.groups,
            (False, True, False),
        )
        total: Tensor = weight
        return total
