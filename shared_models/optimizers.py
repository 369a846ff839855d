"""The optimizers of a study: at the sites, and at the server in studies of one global step a round."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shared_models.study import Training


def optimizer_of(
    weights: Sequence[Tensor], training: Training, *, learning_rate: float
) -> torch.optim.Optimizer:
    """Return the study's optimizer for *weights*, without any memory of earlier steps.

    ``sgd`` is torch's SGD with momentum. ``adam`` adds the decay of weights to the gradient, ``adamw`` takes it from
    the weights themselves (Loshchilov and Hutter 2019).
    """
    decay = training.weight_decay
    if training.optimizer == "adam":
        return torch.optim.Adam(weights, lr=learning_rate, weight_decay=decay)
    if training.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=learning_rate, weight_decay=decay)
    return torch.optim.SGD(weights, lr=learning_rate, momentum=training.momentum, weight_decay=decay)
