"""Log odds of one output."""

from typing import Literal

import torch
from torch import Tensor

Activation = Literal["sigmoid", "softmax"]


def log_odds(logits: Tensor, output: int, activation: Activation) -> Tensor:
    """Return ln(p / (1 − p)) of an output's probability p: logits (batch, outputs) → (batch,).

    With a sigmoid that is the logit itself. With softmax it is the logit against all others together; a single logit
    would mean nothing there, since the same number may be added to all.
    """
    if activation == "sigmoid":
        return logits[:, output]
    others = torch.cat((logits[:, :output], logits[:, output + 1 :]), 1)
    return logits[:, output] - others.logsumexp(1)
