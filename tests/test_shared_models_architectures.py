"""Which weights a study trains: the others stay, do not travel, and stand in the model that is kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from studies import make_study

from client.features import with_features
from client.local_round import OpenRun, training_vector
from client.patients import PatientSet
from client.roles import Role
from client.training import Machine
from privacy.accounting import TrainingCost
from privacy.randomness import CryptographicGenerator
from server.checkpoint import Progress
from server.model_file import write_model
from server.result import build_result
from shared_models.architectures import build_model
from shared_models.layouts import training_layout
from shared_models.manifest import Manifest, flatten, unflatten
from shared_models.study import Study
from shared_models.tasks.registry import task_of

WIDTH, SEED = "width = 8", "seed = 1"
LAST_BLOCK, HEAD = ({WIDTH: f'{WIDTH}\ntrainable = "{part}"'} for part in ("last-block", "head"))
TRAINED = {
    "head": ["head.weight", "head.bias"],
    "last-block": [
        "convolutions.3.weight", "convolutions.3.bias", "norms.3.weight", "norms.3.bias", "head.weight", "head.bias",
    ],
}  # fmt: skip
PARTS = [pytest.param(HEAD, "head", id="head"), pytest.param(LAST_BLOCK, "last-block", id="last-block")]
MACHINE = Machine(device=torch.device("cpu"), physical_batch=8, mixed_precision=False)


@pytest.mark.parametrize(("changes", "part"), PARTS)
def test_only_the_trained_weights_are_in_the_manifest_and_in_the_vector(
    changes: dict[str, str], part: str
) -> None:
    model = build_model(make_study(changes))
    manifest = Manifest.of(model)
    assert [name for name, _ in manifest.entries] == TRAINED[part]
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    vector = flatten(model)
    assert vector.shape == (manifest.num_weights,)
    unflatten(vector + 1, model)
    for name, weight in model.named_parameters():
        moved = 1.0 if name in TRAINED[part] else 0.0
        assert torch.allclose(weight - before[name], torch.tensor(moved), atol=1e-6), name


def test_what_is_trained_does_not_change_the_initial_weights() -> None:
    whole = build_model(make_study()).state_dict()
    for changes in (HEAD, LAST_BLOCK):
        assert all(
            torch.equal(weight, whole[name])
            for name, weight in build_model(make_study(changes)).state_dict().items()
        )


def test_models_whose_frozen_weights_differ_have_other_manifests() -> None:
    """Otherwise sites would train heads of different networks, and nobody would notice."""
    model, again = build_model(make_study(HEAD)), build_model(make_study(HEAD))
    assert Manifest.of(model).hash == Manifest.of(again).hash
    with torch.no_grad():
        model.head.weight.add_(1.0)
    assert Manifest.of(model).hash == Manifest.of(again).hash, "weights that are trained differ in each round"
    with torch.no_grad():
        model.convolutions[0].weight[0, 0, 0, 0] += 1e-6
    assert Manifest.of(model).hash != Manifest.of(again).hash
    other = build_model(make_study({**HEAD, SEED: "seed = 2"}))
    assert Manifest.of(other).entries == Manifest.of(again).entries
    assert Manifest.of(other).hash != Manifest.of(again).hash


def patients() -> PatientSet:
    made = torch.Generator().manual_seed(3)
    return PatientSet(
        pseudonyms=tuple("abcdefgh"),
        images=torch.rand(8, 1, 16, 16, generator=made),
        labels=torch.randint(0, 2, (8,), generator=made),
        first_image=np.arange(9),
    )


def trained(study: Study, own: PatientSet) -> OpenRun:
    """A run after one round, whose update has the layout's length and is not zero."""
    private = study.privacy.mode != "none"
    run = OpenRun(
        run_id="run",
        study=study,
        task=task_of(study),
        model=build_model(study),
        patients={Role.TRAIN: own},
        num_patients=8,
        cost=TrainingCost(sample_rate=0.5, noise_multiplier=1.0, num_steps=6) if private else None,
        evaluation_deviation=None,
        machine=MACHINE,
    )
    weights = flatten(run.model)
    local = training_vector(run, 1, weights, generator=CryptographicGenerator(bytes(32)))
    layout = training_layout(study, 1, num_weights=len(weights))
    assert np.abs(layout.decode_sum(local.vector)[0]).max() > 1e-4
    return run


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(("changes", "part"), PARTS)
def test_a_round_changes_the_trained_weights_and_no_other(
    changes: dict[str, str], part: str, private: bool
) -> None:
    """Weight decay neither."""
    decay = {"learning_rate = 0.1": "learning_rate = 0.1\nweight_decay = 0.1"}
    study = make_study({**changes, **decay}, private=private)
    before = build_model(study).state_dict()
    for name, weight in trained(study, patients()).model.named_parameters():
        assert torch.equal(weight, before[name]) is (name not in TRAINED[part]), name


def test_a_head_is_trained_on_features_that_are_computed_once() -> None:
    study, own = make_study(HEAD), patients()
    seen = with_features(build_model(study), own, training=study.training, machine=MACHINE)
    assert seen.features is not None
    assert seen.features.shape == (8, 32)
    on_images, on_features = (flatten(trained(study, one).model) for one in (own, seen))
    np.testing.assert_allclose(on_features, on_images, rtol=0, atol=1e-6)
    block = make_study(LAST_BLOCK)
    assert with_features(build_model(block), own, training=block.training, machine=MACHINE) is own


@pytest.mark.parametrize(("changes", "part"), PARTS)
def test_the_kept_model_has_all_weights(changes: dict[str, str], part: str, tmp_path: Path) -> None:
    study = make_study(changes)
    run = trained(study, patients())
    result = build_result(study, Progress(run_id="run", study_hash=study.hash), engine="local", refusals={})
    write_model(tmp_path / "model.safetensors", study, flatten(run.model), result)
    kept = load_file(tmp_path / "model.safetensors")
    assert set(kept) == set(run.model.state_dict())
    for name, weight in run.model.named_parameters():
        np.testing.assert_array_equal(kept[name], weight.detach().numpy())
