"""The training loop of a round: the study's optimizer, begun anew, and dropout from the generator of the round."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from studies import make_study

from client.global_step import clipped_sum
from client.patients import PatientSet
from client.training import Machine, PlainGradientSum, train
from privacy.randomness import CryptographicGenerator
from shared_models.architectures import build_model
from shared_models.manifest import flatten
from shared_models.study import Study
from shared_models.tasks.registry import task_of

MACHINE = Machine(device=torch.device("cpu"), physical_batch=8, mixed_precision=False)
RATE = "learning_rate = 0.1"


def patients(num: int = 8) -> PatientSet:
    made = torch.Generator().manual_seed(3)
    return PatientSet(
        pseudonyms=tuple(f"{number}" for number in range(num)),
        images=torch.rand(num, 1, 16, 16, generator=made),
        labels=torch.randint(0, 2, (num,), generator=made),
        first_image=np.arange(num + 1),
    )


def study_with(*lines: str, **changes: str) -> Study:
    return make_study({RATE: "\n".join([RATE, *lines]), "sample_rate = 0.5": "sample_rate = 1.0", **changes})


def trained(study: Study, *, rounds: int = 1, key: int = 0) -> np.ndarray:
    model, generator = build_model(study), CryptographicGenerator(key.to_bytes(32, "big"))
    for _ in range(rounds):
        train(
            model,
            patients(),
            PlainGradientSum(model, task_of(study), mixed_precision=False),
            training=study.training,
            learning_rate=0.01,
            num_patients=8,
            machine=MACHINE,
            generator=generator,
        )
    return flatten(model)


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_a_round_at_a_site_takes_the_steps_of_torchs_optimizer_and_each_round_begins_anew(
    optimizer: str, kind: type[torch.optim.Optimizer]
) -> None:
    study = study_with(f'optimizer = "{optimizer}"', "weight_decay = 0.1")
    model, own, task = build_model(study), patients(), task_of(study)
    for _ in range(2):
        made = kind(model.parameters(), lr=0.01, weight_decay=0.1)
        for _ in range(study.training.local_steps):
            made.zero_grad()
            task.loss(model(own.images), own.labels.float()).mean().backward()
            made.step()
    np.testing.assert_allclose(trained(study, rounds=2), flatten(model), rtol=0, atol=1e-5)


def test_adam_with_decay_of_weights_is_another_than_adamw() -> None:
    ends = [trained(study_with(f'optimizer = "{name}"', "weight_decay = 0.5")) for name in ("adam", "adamw")]
    assert np.abs(ends[0] - ends[1]).max() > 1e-3


DROPOUT = {"width = 8": "width = 8\ndropout = 0.5"}


def test_dropout_draws_from_the_rounds_generator_and_leaves_torchs_state_alone() -> None:
    study, state = study_with(**DROPOUT), torch.get_rng_state()
    first = trained(study)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    np.testing.assert_array_equal(trained(study), first)
    others = [trained(study, key=key) for key in (1, 2)]
    assert all(np.abs(one - other).max() > 1e-4 for one, other in pairwise([first, *others]))
    assert np.abs(trained(study_with()) - first).max() > 1e-4


@pytest.mark.slow
def test_with_dropout_each_step_of_a_private_round_is_within_the_bound() -> None:
    """Eight patients, each clipped to 0.01: their sum is no longer than 0.08, and close to it."""
    study = study_with(**DROPOUT)
    summed = clipped_sum(
        build_model(study),
        patients(),
        task=task_of(study),
        training=study.training,
        clipping_bound=0.01,
        machine=MACHINE,
        generator=CryptographicGenerator(bytes(32)),
    )
    assert 0.01 < float(np.linalg.norm(summed)) <= 0.08
