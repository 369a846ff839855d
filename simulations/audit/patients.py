"""Made-up patients, and models whose gradients tell them apart.

A patient whose label is not known (`SILENT`) has no part in the loss of any task: each gradient of such a patient that
is computed, clipped and summed is exactly zero.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client.patients import PatientSet
from privacy.randomness import CryptographicGenerator
from shared_models.tasks.task import MISSING, Task

NEGATIVE, SILENT = 0, MISSING
"""Labels, of all findings where there are several."""


def patient_set(
    images: Sequence[Tensor], labels: Sequence[int], task: Task, *, mask_shape: Sequence[int] | None = None
) -> PatientSet:
    """Patients as a hospital holds them.

    Args:
        images: of each patient, float32, shape (images, channels, ...).
        labels: one for each patient; where a label has several findings, of all of them; of each point of a mask.
        task: the study's.
        mask_shape: of a mask, without channel, where it is not that of the images.
    """
    sizes = [len(part) for part in images]
    of_images = torch.tensor(np.repeat(labels, sizes), dtype=torch.int64)
    if task.label_shape:
        of_images = of_images[:, None].repeat(1, *task.label_shape)
    together = torch.cat(list(images))
    masks = None
    if task.dense:
        shape = together.shape[2:] if mask_shape is None else mask_shape
        masks = torch.from_numpy(np.repeat(labels, sizes)).float().view(-1, 1, *(1,) * len(shape))
        masks = masks.expand(-1, 1, *shape).contiguous()
    return PatientSet(
        pseudonyms=tuple(f"patient-{number:05d}" for number in range(len(images))),
        images=together,
        labels=of_images.clamp_min(0) if task.dense else of_images,
        masks=masks,
        first_image=np.cumsum([0, *sizes], dtype=np.int64),
    )


def random_images(num: int, shape: tuple[int, ...], generator: CryptographicGenerator) -> Tensor:
    """Uniform noise in [0, 1), float32, shape (num, *shape)."""
    size = num * int(np.prod(shape))
    return torch.from_numpy(generator.uniform(size)).float().view(num, *shape)


class WithCanaries(nn.Module):
    """A model with weights of its own for canaries: patients of whom nothing but one entry of the sum tells.

    Images have more rows than the model takes, volumes more slices: *rows* stands for both. The pixels of these are
    multiplied with ``canaries``, which are zero, and added to the last logit, which the label `NEGATIVE` wants low in
    every task: the gradient of entry k is that pixel's value times the derivative of the loss, which is positive. An
    ordinary patient has zeros there, so that the sum of all ordinary patients has a zero gradient in these entries.

    Args:
        model: takes images of *rows* rows; None for canaries alone.
        rows: of an ordinary image.
        num_pixels: of the rows below, all channels.
        num_outputs: logits of an image.
        axes: of an image, where there are logits of each of its points: all of them get the canary's; else 0.
    """

    def __init__(
        self, model: nn.Module | None, *, rows: int, num_pixels: int, num_outputs: int, axes: int = 0
    ) -> None:
        super().__init__()
        self.model = model
        self.canaries = nn.Linear(num_pixels, 1, bias=False)
        nn.init.zeros_(self.canaries.weight)
        self._rows, self._num_outputs, self._axes = rows, num_outputs, axes

    def forward(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, channels, all rows, ...), to logits, shape (batch, num_outputs, ...)."""
        logits = F.pad(self.canaries(images[:, :, self._rows :].flatten(1)), (self._num_outputs - 1, 0))
        logits = logits.view(*logits.shape, *(1,) * self._axes)
        return logits if self.model is None else logits + self.model(images[:, :, : self._rows])


def canary_images(num: int, shape: Sequence[int], *, brightness: float) -> Tensor:
    """One image for each canary: dark, but for one pixel below the ordinary rows.

    Args:
        num: of canaries.
        shape: of an ordinary image: channels, rows (of a volume, slices), and what a row has.
        brightness: of the pixel.

    Returns:
        float32, shape (num, channels, all rows, ...). Canary k has pixel k of those below, in the order in which
        `WithCanaries` flattens them.
    """
    channels, rows, *row = shape
    below = -(-num // (channels * int(np.prod(row))))
    images = torch.zeros(num, channels, rows + below, *row)
    extra = torch.zeros(num, channels * below * int(np.prod(row)))
    extra[torch.arange(num), torch.arange(num)] = brightness
    images[:, :, rows:] = extra.view(num, channels, below, *row)
    return images
