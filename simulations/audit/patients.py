"""Made-up patients, and models whose gradients tell them apart."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from client.patients import PatientSet
from privacy.randomness import CryptographicGenerator

POSITIVE, NEGATIVE = 1, 0


def patient_set(images: Sequence[Tensor], labels: Sequence[int]) -> PatientSet:
    """Patients as a hospital holds them.

    Args:
        images: of each patient, float32, shape (images, channels, ...).
        labels: one for each patient.
    """
    sizes = [len(part) for part in images]
    return PatientSet(
        pseudonyms=tuple(f"patient-{number:05d}" for number in range(len(images))),
        images=torch.cat(list(images)),
        labels=torch.tensor(np.repeat(labels, sizes), dtype=torch.int64),
        first_image=np.cumsum([0, *sizes], dtype=np.int64),
    )


def random_images(num: int, shape: tuple[int, ...], generator: CryptographicGenerator) -> Tensor:
    """Uniform noise in [0, 1), float32, shape (num, *shape)."""
    size = num * int(np.prod(shape))
    return torch.from_numpy(generator.uniform(size)).float().view(num, *shape)


class WithCanaries(nn.Module):
    """A model with weights of its own for canaries: patients of whom nothing but one entry of the sum tells.

    Images have more rows than the model takes, volumes more slices: *rows* stands for both. The pixels of these are
    multiplied with ``canaries``, which are zero, and added to the logit: the gradient of entry k is that pixel's value
    times the derivative of the loss. An ordinary patient has zeros there, so that the sum of all ordinary patients has
    a zero gradient in these entries.

    Args:
        model: takes images of *rows* rows; None for canaries alone.
        rows: of an ordinary image.
        num_pixels: of the rows below, all channels.
    """

    def __init__(self, model: nn.Module | None, *, rows: int, num_pixels: int) -> None:
        super().__init__()
        self.model = model
        self.canaries = nn.Linear(num_pixels, 1, bias=False)
        nn.init.zeros_(self.canaries.weight)
        self._rows = rows

    def forward(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, channels, all rows, ...), to logits, shape (batch, 1)."""
        logits: Tensor = self.canaries(images[:, :, self._rows :].flatten(1))
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
