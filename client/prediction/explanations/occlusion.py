"""Occlusion sensitivity, by Captum.

Source: Zeiler and Fergus (2014), "Visualizing and understanding convolutional networks", section 4.2.
"""

from collections.abc import Sequence

import torch
from captum.attr import Occlusion
from torch import Tensor

from client.prediction.explanations.log_odds import Activation, log_odds
from shared_models.networks.network import Network

_SHARE = {2: 8, 3: 4}
"""Windows along the longer side of an image or a volume; they overlap by half."""


def window_of(size: Sequence[int]) -> tuple[int, ...]:
    """Return the side of the square or cube that is covered, of an image of this size; none longer than the image."""
    side = max(2, round(max(size) / _SHARE[len(size)]))
    return tuple(min(side, of_axis) for of_axis in size)


def occlusion(
    model: Network, image: Tensor, *, output: int, activation: Activation, at_a_time: int
) -> Tensor:
    """Return the map of one image: what covering each place takes from the output's log odds.

    Each window is filled with the mean of the image, of each channel its own; a place has the mean of what the windows
    over it do. What is negative, where covering speaks for the output, is put to 0.

    Args:
        model: in evaluation mode.
        image: float32, shape (channels, ...) in [0, 1].
        output: which.
        activation: of the task.
        at_a_time: covered images in a batch.

    Returns:
        float32, shape of *image* without its channels, at least 0.
    """
    window = window_of(image.shape[1:])
    occluded = Occlusion(lambda images: log_odds(model(images), output, activation))
    filling = image.flatten(1).mean(1).reshape(1, -1, *[1] * len(window)).expand(1, *image.shape)
    with torch.no_grad():
        found = occluded.attribute(
            image[None],
            sliding_window_shapes=(len(image), *window),
            strides=(len(image), *(max(1, side // 2) for side in window)),
            baselines=filling,
            perturbations_per_eval=at_a_time,
        )
    lost: Tensor = found[0].mean(0)
    return lost.relu().to(torch.float32)
