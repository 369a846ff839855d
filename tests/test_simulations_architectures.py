"""Each architecture trains two rounds, clipped, noised and masked, with each kind of task; without noise as ever."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_sites import FakeExchange
from studies import ONE_QUESTION, ONE_STRUCTURE, THREE_CLASSES, TWO_FINDINGS, TWO_STRUCTURES, make_study

from client.local_round import OpenRun, final_vector, training_vector
from client.patients import PatientSet
from client.roles import Role
from client.training import Machine
from privacy.accounting import TrainingCost
from privacy.randomness import CryptographicGenerator
from server.round_loop import run_rounds
from server.run import checkpoint_path
from server.run_state import RunContext, RunState
from shared_models.architectures import build_model
from shared_models.catalogue import CATALOGUE
from shared_models.manifest import flatten, unflatten
from shared_models.messages import Evaluate, Request, Train
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from shared_models.vector import IntVector

MACHINE = Machine(device=torch.device("cpu"), physical_batch=8, mixed_precision=False)
QUIET, NOISY = 1e-8, 1.0
NUM_PATIENTS = 4
QUICK = ("small-cnn-3d", "scattering", "resnet-18", "unet")
MOVED = {
    "small-cnn": {"one": 0.08313, "classes": 0.08400, "findings": 0.09491},
    "small-cnn-3d": {"one": 0.08832, "classes": 0.06402, "findings": 0.11074},
    "scattering": {"one": 0.12536, "classes": 0.14392, "findings": 0.13165},
    "resnet-18": {"one": 0.10042, "classes": 0.08410, "findings": 0.09008},
    "resnet-34": {"one": 0.08652, "classes": 0.08068, "findings": 0.07975},
    "resnet-50": {"one": 0.09265, "classes": 0.08272, "findings": 0.08053},
    "resnet-18-3d": {"one": 0.10595, "classes": 0.08129, "findings": 0.09341},
    "resnet-34-3d": {"one": 0.07488, "classes": 0.06747, "findings": 0.08299},
    "resnet-50-3d": {"one": 0.08623, "classes": 0.07782, "findings": 0.07982},
    "densenet-121": {"one": 0.10413, "classes": 0.08724, "findings": 0.09606},
    "densenet-121-3d": {"one": 0.08948, "classes": 0.07837, "findings": 0.12887},
    "vgg-11": {"one": 0.09153, "classes": 0.07405, "findings": 0.09464},
    "unet": {"one": 0.12379, "structures": 0.12826},
    "unet-3d": {"one": 0.04050, "structures": 0.10141},
    "res-unet": {"one": 0.11438, "structures": 0.14943},
    "res-unet-3d": {"one": 0.12989, "structures": 0.13662},
}
"""How far the weights are from the first ones after two rounds without noise, in L2, by the kind of task."""


def study_of(name: str, task: str = ONE_QUESTION) -> Study:
    one = CATALOGUE[name]
    own = {"width": "width = 8", "stem": 'stem = "3x3"', "scales": "scales = 1", "levels": "levels = 2"}
    side = 32 if name == "vgg-11" else 8
    volume = f'depth = {side}\nspacing = 2.0\nslice_spacing = 3.0\nintensity = "percentiles"'
    return make_study(
        {
            'architecture = "small-cnn"\nwidth = 8': "\n".join(
                [f'architecture = "{name}"', *(line for key, line in own.items() if key in one.keys)]
            ),
            "rows = 16\ncolumns = 16": f"rows = {side}\ncolumns = {side}"
            + (f"\n{volume}" if one.dimensions == 3 else ""),
            "num_rounds = 3": "num_rounds = 2",
            "validation_rounds = [1, 3]": "validation_rounds = [1]",
            "sample_rate = 0.5": "sample_rate = 1.0",
            ONE_QUESTION: ONE_STRUCTURE if one.dense and task == ONE_QUESTION else task,
        },
        private=True,
    )


def patients_of(study: Study, seed: int) -> PatientSet:
    made = torch.Generator().manual_seed(seed)
    task = task_of(study)
    images = torch.rand(NUM_PATIENTS, *study.image.shape, generator=made)
    labels = torch.randint(0, task.num_values, (NUM_PATIENTS, *task.label_shape), generator=made)
    masks = None
    if task.dense:
        num = len(study.task.mask_values) + 1
        masks = torch.randint(0, num, (NUM_PATIENTS, 1, *study.image.shape[1:]), generator=made).float()
    return PatientSet(
        pseudonyms=tuple(str(number) for number in range(NUM_PATIENTS)),
        images=images,
        labels=labels,
        masks=masks,
        first_image=np.arange(NUM_PATIENTS + 1),
    )


class TrainingExchange(FakeExchange):
    """Sites that train and evaluate as real ones do, with noise of this multiplier on training."""

    def begin(self, noise: float) -> "TrainingExchange":
        self.runs = {}
        for number, site in enumerate(sorted(self.shifts)):
            patients = patients_of(self.study, number)
            self.runs[site] = OpenRun(
                run_id=self.run_id,
                study=self.study,
                task=task_of(self.study),
                model=build_model(self.study),
                patients=dict.fromkeys(Role, patients),
                num_patients=NUM_PATIENTS,
                cost=TrainingCost(sample_rate=1.0, noise_multiplier=noise, num_steps=4),
                evaluation_deviation=1.0,
                machine=MACHINE,
            )
        return self

    def _step(self, site: str, request: Request, payload: bytes, message: bytes) -> bytes:
        self.payload = payload
        return super()._step(site, request, payload, message)

    def vector(self, site: str, request: Train | Evaluate, num_weights: int) -> IntVector:
        run, weights = self.runs[site], np.frombuffer(self.payload, dtype="<f4")
        generator = CryptographicGenerator(f"{site}{request.round}".encode().ljust(32, b"."))
        unflatten(weights, run.model)
        if isinstance(request, Evaluate):
            return final_vector(run, generator=generator).vector
        return training_vector(run, request.round, weights, generator=generator).vector


def trained(study: Study, folder: Path, *, noise: float) -> RunState:
    exchange = TrainingExchange(study, {"north": 0.0, "south": 0.0}).begin(noise)
    return run_rounds(
        RunContext(
            study=study,
            run_id=exchange.run_id,
            exchange=exchange,
            federation=exchange.federation,
            checkpoint=checkpoint_path(folder, exchange.run_id),
            patience_seconds=0.0,
            start_seconds=0.0,
        )
    )


KINDS = {
    "one": ONE_QUESTION,
    "classes": THREE_CLASSES,
    "findings": TWO_FINDINGS,
    "structures": TWO_STRUCTURES,
}
"""Of `ONE_QUESTION` networks that outline have one structure."""


def kinds_of(name: str) -> tuple[str, ...]:
    return ("one", "structures") if CATALOGUE[name].dense else ("one", "classes", "findings")


EVERY = [(name, kind) for name in CATALOGUE for kind in kinds_of(name)]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_two_masked_rounds_without_noise_move_the_weights_as_far_as_ever(
    name: str, kind: str, tmp_path: Path
) -> None:
    """Golden numbers: they change where the network, its first weights, the loss, clipping or the loop does."""
    study = study_of(name, KINDS[kind])
    state = trained(study, tmp_path, noise=QUIET)
    assert [record.burned for record in state.progress.rounds] == [None, None]
    assert state.progress.rounds[0].validation is not None
    moved = state.model.weights - flatten(build_model(study))
    assert float(np.linalg.norm(moved.astype(np.float64))) == pytest.approx(MOVED[name][kind], rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if kind != "one" or name in QUICK else pytest.mark.thorough)
        for name, kind in EVERY
    ],
)
def test_each_architecture_trains_two_masked_rounds_with_noise_for_each_of_its_tasks(
    name: str, kind: str, tmp_path: Path
) -> None:
    trains_two_rounds_with_noise(name, KINDS[kind], tmp_path)


def trains_two_rounds_with_noise(name: str, task: str, tmp_path: Path) -> None:
    study = study_of(name, task)
    state = trained(study, tmp_path, noise=NOISY)
    assert [record.survivors for record in state.progress.rounds] == [("north", "south")] * 2
    assert state.progress.test is not None
    moved = state.model.weights - flatten(build_model(study))
    assert np.isfinite(moved).all()
    # Two sites and four steps of noise 0.1 / 4 on each weight, averaged: standard deviation 0.1 / 4 · √(4 / 2).
    assert float(moved.std()) == pytest.approx(0.1 / 4 * 2**0.5, rel=0.1)
