"""Gradient inversion: pictures from what the server sees of one round.

The server attacks the round in which it sees most: one hospital has one patient with one image, who is sampled for
certain in the one step, no other honest hospital has anybody, and the server knows the label. The models are such as
are known to give pictures away.

Source: Phong et al. (2018), "Privacy-preserving deep learning via additively homomorphic encryption", section 3 (closed
form); Zhu, Liu and Han (2019), "Deep leakage from gradients" (network, L-BFGS); Geiping et al. (2020), "Inverting
gradients: how easy is it to break privacy in federated learning?", section 4 (cosine similarity, total variation).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from client.patients import PatientSet
from shared_models.augmentation import Augmentation
from shared_models.study import Study
from shared_models.tasks.binary import BinaryTable
from shared_models.tasks.registry import task_of
from simulations.audit.findings import Finding, Findings, Keys
from simulations.audit.patients import NEGATIVE, patient_set, random_images
from simulations.audit.release import Doubles, Release, clipping_bound
from simulations.audit.similarity import Picture, structural_similarity
from simulations.preparation.anatomy import draw_anatomy, draw_view
from simulations.preparation.phantom import optical_depth

SIZE = 32
"""Rows and columns of the pictures."""
_HIDDEN, _CHANNELS, _SEED = 16, 12, 1
_ITERATIONS, _VARIATION, _NOTHING = 200, 1e-4, 1e-30
ONE_QUESTION = BinaryTable(kind="binary-classification", label="finding", positive=("yes",), negative=("no",))
"""What the models of the attacks learn, whatever the study's task is: theirs is the worst case, not its model's."""
_MARGIN, _DEVIATION, _SUCCESS = 0.08, 0.02, 0.5
"""In SSIM: what is taken for no better than random; spread of random ones; what a working attack reaches."""

Inversion: TypeAlias = Callable[[Doubles, nn.Module, Keys], Picture]
"""From a sum of gradients to a picture, shape (SIZE, SIZE)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A way to get a picture, and the model that the server sends for it."""

    name: str
    model: Callable[[], nn.Module]
    invert: Inversion


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """One patient's picture, and what an attack made of three rounds: all float64, shape (SIZE, SIZE), in [0, 1].

    Attributes:
        unprotected: the gradient as it is.
        protected: what the server sees.
        random: what the server would see if the patient were not there.
    """

    attack: str
    original: Picture
    unprotected: Picture
    protected: Picture
    random: Picture

    def similarity(self, name: str) -> float:
        """SSIM with the original."""
        return structural_similarity(self.original, getattr(self, name))


def inversion(reconstructions: Sequence[Reconstruction]) -> Findings:
    """Compare what each attack made of protected rounds with what it made of rounds without the patient."""
    findings = []
    for attack in dict.fromkeys(each.attack for each in reconstructions):
        own = [each for each in reconstructions if each.attack == attack]
        means = {
            name: float(np.mean([each.similarity(name) for each in own]))
            for name in ("unprotected", "protected", "random")
        }
        spread = _DEVIATION * (2.0 / len(own)) ** 0.5
        findings += [
            Finding(
                what=f"{attack}: SSIM, mean of {len(own)} (random, and {_MARGIN:g})",
                seen=means["protected"],
                most=means["random"] + _MARGIN,
                false_alarm=float(stats.norm.sf(_MARGIN / spread)),
            ),
            Finding(
                what=f"{attack}: SSIM from unprotected gradients",
                seen=means["unprotected"],
                least=_SUCCESS,
            ),
        ]
    return tuple(findings)


def reconstruct(study: Study, keys: Keys, *, num_patients: int = 4) -> tuple[Reconstruction, ...]:
    """Attack the rounds of *num_patients* made-up patients, each in every way."""
    study = study.model_copy(update={"task": ONE_QUESTION})
    rounds = Release.of(study, reach=1.0).training(
        local_steps=1, momentum=0.0, sample_rate=1.0, augmentation=Augmentation()
    )
    loudest = clipping_bound(study) + 10.0 * rounds.opening.standard_deviation(1)
    rounds = replace(rounds, reach=loudest).training()
    return tuple(
        _attacked(attack, phantom(number), rounds, keys)
        for attack in ATTACKS
        for number in range(num_patients)
    )


def _attacked(attack: Attack, picture: Tensor, rounds: Release, keys: Keys) -> Reconstruction:
    model = attack.model()
    victim = patient_set([picture[None, None]], [NEGATIVE], task_of(rounds.study))
    nobody = victim.without(victim.pseudonyms)
    others = [nobody] * (rounds.opening.num_honest - 1)

    def attacked(release: Release, *patients: PatientSet) -> Picture:
        return attack.invert(release.round(model, patients, keys()), model, keys)

    return Reconstruction(
        attack=attack.name,
        original=picture.double().numpy(),
        unprotected=attacked(rounds.unprotected(), victim),
        protected=attacked(rounds, victim, *others),
        random=attacked(rounds, nobody, *others),
    )


# The attacks.


class FirstLinear(nn.Module):
    """A perceptron: the gradient of each row of its first layer is a multiple of the image."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            self.first, self.second = nn.Linear(SIZE * SIZE, _HIDDEN), nn.Linear(_HIDDEN, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, 1, SIZE, SIZE), to logits, shape (batch, 1)."""
        logits: Tensor = self.second(F.silu(self.first(images.flatten(1))))
        return logits


def closed_form(gradient: Doubles, model: nn.Module, keys: Keys) -> Picture:
    """Of z = W x + b the gradients are δ xᵀ and δ: least squares over the rows gives x = Σ δ (δ xᵀ) / Σ δ²."""
    weights = gradient[: _HIDDEN * SIZE * SIZE].reshape(_HIDDEN, SIZE * SIZE)
    biases = gradient[_HIDDEN * SIZE * SIZE :][:_HIDDEN]
    square = max(float(biases @ biases), _NOTHING)
    picture: Picture = (biases @ weights / square).reshape(SIZE, SIZE).clip(0.0, 1.0)
    return picture


class Convolutional(nn.Module):
    """Three convolutions with strides and sigmoids, without pooling: what deep leakage was shown on."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            self.convolutions = nn.ModuleList(
                nn.Conv2d(before, _CHANNELS, kernel_size=5, padding=2, stride=stride)
                for before, stride in ((1, 2), (_CHANNELS, 2), (_CHANNELS, 1))
            )
            self.head = nn.Linear(_CHANNELS * (SIZE // 4) ** 2, 1)
            for weight in self.parameters():
                nn.init.uniform_(weight, -0.5, 0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, shape (batch, 1, SIZE, SIZE), to logits, shape (batch, 1)."""
        for convolution in self.convolutions:
            images = torch.sigmoid(convolution(images))
        logits: Tensor = self.head(images.flatten(1))
        return logits


def optimised(gradient: Doubles, model: nn.Module, keys: Keys) -> Picture:
    """The picture whose gradient points most nearly the same way, by L-BFGS from a random one."""
    weights = list(model.parameters())
    sizes = [weight.numel() for weight in weights]
    target = [
        part.view(weight.shape)
        for part, weight in zip(torch.split(torch.from_numpy(gradient).float(), sizes), weights, strict=True)
    ]
    length = torch.stack([(part**2).sum() for part in target]).sum().sqrt().clamp_min(_NOTHING)
    image = random_images(1, (1, SIZE, SIZE), keys()).requires_grad_()
    label = torch.full((1,), float(NEGATIVE))
    optimizer = torch.optim.LBFGS(
        [image],
        max_iter=_ITERATIONS,
        history_size=50,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(image)[:, 0], label)
        own = torch.autograd.grad(loss, weights, create_graph=True)
        product = torch.stack([(a * b).sum() for a, b in zip(own, target, strict=True)]).sum()
        norm = torch.stack([(part**2).sum() for part in own]).sum().sqrt()
        variation = image.diff(dim=2).abs().mean() + image.diff(dim=3).abs().mean()
        distance: Tensor = 1.0 - product / (norm * length) + _VARIATION * variation
        distance.backward(inputs=[image])  # type: ignore[no-untyped-call]
        return distance

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    picture: Picture = image.detach().double().numpy()[0, 0].clip(0.0, 1.0)
    return picture


ATTACKS = (
    Attack(name="closed form", model=FirstLinear, invert=closed_form),
    Attack(name="optimisation", model=Convolutional, invert=optimised),
)


def phantom(number: int) -> Tensor:
    """A synthetic chest radiograph, float32, shape (SIZE, SIZE), in [0, 1]."""
    generator = np.random.default_rng([_SEED, number])
    anatomy = draw_anatomy(
        generator, female=number % 2 == 0, positive=number % 2 == 1, contrast=2.0, size=1.7
    )
    light = np.exp(-optical_depth(anatomy, draw_view(generator), SIZE, SIZE, generator))
    dark, bright = np.percentile(light, [0.5, 99.5])
    return torch.from_numpy(1.0 - ((light - dark) / (bright - dark)).clip(0.0, 1.0)).float()
