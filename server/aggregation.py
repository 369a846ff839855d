"""The next global model from what the server learns of a round.

FedAvg, FedAvgM or FedAdam of the mean update, or one step of an optimizer along a gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from shared_models.manifest import FloatVector
from shared_models.optimizers import optimizer_of
from shared_models.study import Study, Training

VELOCITY, FIRST, SECOND = "velocity", "first-moment", "second-moment"
_ADAM = {FIRST: "exp_avg", SECOND: "exp_avg_sq"}
_TORCH_NAMES = {"sgd": {VELOCITY: "momentum_buffer"}, "adam": _ADAM, "adamw": _ADAM}
_SERVER_BETAS = (0.9, 0.99)
"""Of FedAdam. The memory of squares is shorter than Adam's usual one: rounds are fewer than steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalModel:
    """The global weights, and what later rounds need besides. All vectors are float32, shape (num_weights,).

    Attributes:
        weights: what sites train.
        average: what is evaluated and kept: the exponential moving average of the weights, or the weights themselves.
        moments: of the optimizer, by name; empty before the first step.
        num_steps: rounds that moved the weights.
        best: the average that validated best, where the study asks for it; None before any did.
    """

    weights: FloatVector
    average: FloatVector
    moments: Mapping[str, FloatVector] = field(default_factory=lambda: MappingProxyType({}))
    num_steps: int = 0
    best: FloatVector | None = None

    @property
    def kept(self) -> FloatVector:
        """What is tested and kept in the end: the model that validated best, where the study stops early."""
        return self.average if self.best is None else self.best

    @classmethod
    def begin(cls, weights: FloatVector) -> Self:
        """The model before the first round."""
        return cls(weights=weights, average=weights)

    def after_update(
        self, mean_update: NDArray[np.float64], *, study: Study, number: int, reductions: int = 0
    ) -> "GlobalModel":
        """Return the next global model after round *number* of *study*, whose mean update this is.

        Args:
            mean_update: weighted mean over sites of how far their weights moved, float64, shape (num_weights,).
            study: says which optimizer the server has.
            number: of the round, from 1.
            reductions: of the learning rate so far.
        """
        aggregation, training = study.aggregation, study.training
        rate = aggregation.server_learning_rate
        if aggregation.server_optimizer == "adam":
            rate = training.scheduled(rate, number, reductions=reductions)
            return self.adapted(mean_update, learning_rate=rate, ema_decay=training.ema_decay)
        momentum = aggregation.server_momentum
        return self.moved(mean_update, momentum=momentum, ema_decay=training.ema_decay, learning_rate=rate)

    def moved(
        self,
        mean_update: NDArray[np.float64],
        *,
        momentum: float,
        ema_decay: float,
        learning_rate: float = 1.0,
    ) -> "GlobalModel":
        """Return the next global model: v ← momentum · v + mean update, w ← w + learning_rate · v.

        Source: McMahan et al. (2017), algorithm 1, for momentum 0 (FedAvg); Hsu, Qi and Brown (2019), section 4.2,
        else (FedAvgM).
        """
        velocity = mean_update
        if VELOCITY in self.moments:
            velocity = momentum * self.moments[VELOCITY].astype(np.float64) + mean_update
        weights = self.weights.astype(np.float64) + learning_rate * velocity
        return self._next(weights, {VELOCITY: velocity}, ema_decay)

    def adapted(
        self, mean_update: NDArray[np.float64], *, learning_rate: float, ema_decay: float
    ) -> "GlobalModel":
        """Return the next global model: one step of Adam, with the mean update for the negative gradient.

        Source: Reddi et al. (2021), "Adaptive federated optimization", algorithm 2 (FedAdam), with its β₁ = 0.9 and
        β₂ = 0.99, torch's 10⁻⁸ in place of its τ, and with the correction of both moments for their beginning at zero
        that Kingma and Ba (2015) have.
        """
        weights = torch.from_numpy(self.weights.astype(np.float64))
        weights.grad = torch.from_numpy(-mean_update)
        optimizer = torch.optim.Adam([weights], lr=learning_rate, betas=_SERVER_BETAS)
        return self._next(weights.numpy(), self._step(optimizer, weights, _ADAM), ema_decay)

    def stepped(
        self, gradient: NDArray[np.float64], *, training: Training, number: int, reductions: int = 0
    ) -> "GlobalModel":
        """Return the next global model after round *number*: one step of the study's optimizer along *gradient*.

        In float64, see `shared_models.optimizers`.

        Args:
            gradient: the mean over patients, float64, shape (num_weights,).
            training: the study's.
            number: of the round, which decides the learning rate.
            reductions: of the learning rate so far.
        """
        weights = torch.from_numpy(self.weights.astype(np.float64))
        weights.grad = torch.from_numpy(gradient)
        rate = training.learning_rate_in(number, reductions=reductions)
        optimizer = optimizer_of([weights], training, learning_rate=rate)
        moments = self._step(optimizer, weights, _TORCH_NAMES[training.optimizer])
        return self._next(weights.numpy(), moments, training.ema_decay)

    def _step(
        self, optimizer: torch.optim.Optimizer, weights: torch.Tensor, names: Mapping[str, str]
    ) -> dict[str, NDArray[np.float64]]:
        """Have a new *optimizer* of *weights* go on with our moments; return those after its step."""
        if self.moments:
            state = {
                torch_name: torch.from_numpy(self.moments[name].astype(np.float64))
                for name, torch_name in names.items()
            }
            optimizer.state[weights] = {"step": torch.tensor(float(self.num_steps)), **state}
        optimizer.step()
        state = optimizer.state[weights]
        return {
            name: state[torch_name].numpy()
            for name, torch_name in names.items()
            if state.get(torch_name) is not None
        }

    def _next(
        self, weights: NDArray[np.float64], moments: Mapping[str, NDArray[np.float64]], ema_decay: float
    ) -> "GlobalModel":
        """The average begins with a shorter memory, which soon forgets the initial weights.

        Source: De et al. (2022), "Unlocking high-accuracy differentially private image classification", section 3.
        """
        now = weights.astype(np.float32)
        average = now
        if ema_decay:
            decay = min(ema_decay, (1 + self.num_steps) / (10 + self.num_steps))
            average = (decay * self.average.astype(np.float64) + (1 - decay) * weights).astype(np.float32)
        return replace(
            self,
            weights=now,
            average=average,
            moments={name: moment.astype(np.float32) for name, moment in moments.items()},
            num_steps=self.num_steps + 1,
        )
