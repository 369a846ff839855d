"""Models for tests of what is made of a trained model: a card around a network, without a run."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from studies import make_study

from client.prediction.reading import Mask, Plane, Reading
from shared_models.architectures import outline
from shared_models.manifest import Manifest
from shared_models.model_card import CardPrivacy, ModelCard
from shared_models.model_file import TrainedModel
from shared_models.networks.network import Network
from shared_models.study import Study
from shared_models.tasks.registry import task_of

PRIVACY = CardPrivacy(
    mode="none",
    unit="patient",
    epsilon=None,
    delta=None,
    noise_multiplier=None,
    evaluation_epsilon=None,
    evaluation_noised=False,
    min_sites_in_sum=2,
    num_colluding=0,
)
SIDE, SQUARE = 64, 10
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


def card_of(study: Study, model: Network) -> ModelCard:
    """A card without a test."""
    task = task_of(study)
    return ModelCard(
        study=study,
        study_hash=study.hash,
        manifest_hash=Manifest.of(model).hash,
        run_id="run-1",
        rounds=3,
        kept_round=3,
        num_sites=3,
        privacy=PRIVACY,
        outputs=tuple(task.output_names),
        activation=task.activation,
        tested=None,
        test={},
        test_noise=0.0,
        limits=("Nobody tested it.",),
        versions={"collegium": "0"},
    )


def trained(study: Study, model: Network | None = None, name: str = "model.safetensors") -> TrainedModel:
    """The study's network, or this one, in evaluation mode, without a file."""
    network = model if model is not None else outline(study)
    network.eval().requires_grad_(False)
    return TrainedModel(
        card=card_of(study, network), task=task_of(study), model=network, digest="0" * 64, name=name
    )


def reading_of(
    prepared: Plane, probabilities: dict[str, float], *, mask: Mask | None = None, name: str = "one.dcm"
) -> Reading:
    return Reading(name=name, files=(Path(name),), prepared=prepared, probabilities=probabilities, mask=mask)


def corner_study(**changes: object) -> Study:
    study = make_study({"rows = 16": f"rows = {SIDE}", "columns = 16": f"columns = {SIDE}"})
    return Study.model_validate({**study.model_dump(), **changes})


def with_square(number: int, *, corner: tuple[int, int] | None) -> Plane:
    """Noise of some scanner, and a bright square somewhere in this corner: (0, 0) is the upper left one."""
    drawn = np.random.default_rng(number)
    plane = np.clip(drawn.normal(0.35, 0.08, (1, SIDE, SIDE)) + drawn.uniform(-0.1, 0.1), 0.0, 1.0)
    if corner is not None:
        top, left = (place * SIDE // 2 + int(drawn.integers(1, SIDE // 2 - SQUARE)) for place in corner)
        plane[0, top : top + SQUARE, left : left + SQUARE] += 0.4
    return np.clip(plane, 0.0, 1.0).astype(np.float32)


def corner_model(*, steps: int = 60) -> TrainedModel:
    """A small CNN that learnt in a few seconds whether there is a square, wherever it is."""
    study = corner_study()
    network = outline(study)
    planes = [
        with_square(number, corner=CORNERS[number // 2 % 4] if number % 2 else None) for number in range(256)
    ]
    images, labels = torch.from_numpy(np.stack(planes)), torch.arange(256).remainder(2).float()
    drawn = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = torch.randperm(256, generator=drawn)[:32]
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(network(images[batch])[:, 0], labels[batch]).backward()
        optimizer.step()
    return trained(study, network)
