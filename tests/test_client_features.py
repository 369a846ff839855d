"""Features that training does not change are computed once, and what is learnt is the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from studies import ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS, make_study

from client import features as features_module
from client.features import trained_part, with_features
from client.local_round import OpenRun, training_vector
from client.patients import PatientSet
from client.roles import Role
from client.training import Machine
from privacy.accounting import TrainingCost
from privacy.randomness import CryptographicGenerator
from shared_models.architectures import build_model
from shared_models.layouts import training_layout
from shared_models.manifest import flatten
from shared_models.study import Study
from shared_models.tasks.registry import task_of

MACHINE = Machine(device=torch.device("cpu"), physical_batch=8, mixed_precision=False)
SCATTERING = {'architecture = "small-cnn"\nwidth = 8': 'architecture = "scattering"\nangles = 4'}
FLIPPED = {**SCATTERING, "sample_rate = 0.5": 'sample_rate = 0.5\naugmentation = { flip = ["columns"] }'}


def patients() -> PatientSet:
    made = torch.Generator().manual_seed(3)
    return PatientSet(
        pseudonyms=tuple("abcdefgh"),
        images=torch.rand(20, 1, 16, 16, generator=made),
        labels=torch.randint(0, 2, (20,), generator=made),
        first_image=np.array([0, 1, 4, 6, 10, 11, 15, 18, 20]),
    )


def seen(study: Study, own: PatientSet) -> PatientSet:
    return with_features(build_model(study), own, training=study.training, machine=MACHINE)


@pytest.mark.parametrize(
    "table", [ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS], ids=["binary", "classes", "findings"]
)
@pytest.mark.parametrize("private", [True, False])
def test_a_round_on_features_is_the_round_on_images_within_rounding(private: bool, table: str) -> None:
    study = make_study({**SCATTERING, ONE_QUESTION: table}, private=private)
    own = patients()
    if shape := task_of(study).label_shape:
        own = replace(own, labels=own.labels[:, None].repeat(1, *shape))
    updates = []
    for training_set in (own, seen(study, own)):
        model = build_model(study)
        run = OpenRun(
            run_id="run",
            study=study,
            task=task_of(study),
            model=model,
            patients={Role.TRAIN: training_set, Role.VALIDATION: own},
            num_patients=8,
            cost=TrainingCost(sample_rate=0.5, noise_multiplier=1.0, num_steps=6) if private else None,
            evaluation_deviation=None,
            machine=MACHINE,
        )
        weights = flatten(model)
        local = training_vector(run, 1, weights, generator=CryptographicGenerator(bytes(32)))
        layout = training_layout(study, 1, num_weights=len(weights))
        updates.append(layout.decode_sum(local.vector)[0])
    assert np.linalg.norm(updates[0]) > 1e-3
    np.testing.assert_allclose(updates[1], updates[0], rtol=0, atol=1e-6)


def test_the_head_is_trained_on_features_and_the_model_on_images() -> None:
    study = make_study(SCATTERING)
    model, own = build_model(study), patients()
    with_them = seen(study, own)
    assert trained_part(model, own) is model
    assert trained_part(model, with_them) is model.head
    assert with_them.features is not None
    assert torch.allclose(with_them.inputs, model.features(own.images), atol=1e-7)
    assert not with_them.features.requires_grad


@pytest.mark.parametrize("study", [make_study(), make_study(FLIPPED)], ids=["all weights", "flip"])
def test_without_features_where_training_changes_them(study: Study) -> None:
    own = patients()
    assert seen(study, own) is own


def test_without_features_where_they_would_take_too_much_memory(monkeypatch) -> None:
    study, own = make_study(SCATTERING), patients()
    size = 25 * 4 * 4 * 4 * len(own.images)
    monkeypatch.setattr(features_module, "MOST_BYTES", size - 1)
    assert seen(study, own) is own
    monkeypatch.setattr(features_module, "MOST_BYTES", size)
    assert seen(study, own).features is not None


def test_nobody_has_no_features() -> None:
    nobody = replace(patients().without(set("abcdefgh")))
    assert seen(make_study(SCATTERING), nobody) is nobody


def test_who_withdraws_takes_the_features_along() -> None:
    whole = seen(make_study(SCATTERING), patients())
    left = whole.without({"b", "g"})
    again = seen(make_study(SCATTERING), patients().without({"b", "g"}))
    assert left.features is not None
    assert again.features is not None
    assert torch.allclose(left.features, again.features, atol=1e-6)
    assert len(left.features) == len(left.images) == 14
