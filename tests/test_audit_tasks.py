"""The auditor's checks hold for several classes, findings and structures, in both modes of privacy."""

import pytest
import torch
from audits import DISTRIBUTED, LOCAL, TestKeys, failed
from mask_sites import ORGANS, mask_study
from studies import ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS, make_study

from client.local_round import OpenRun, training_vector
from client.roles import Role
from client.training import Machine
from shared_models.architectures import build_model
from shared_models.layouts import training_layout
from shared_models.manifest import flatten
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from simulations.audit.canaries import one_run
from simulations.audit.contributions import clipping, coupling
from simulations.audit.counts import count, evaluation
from simulations.audit.patients import patient_set, random_images
from simulations.audit.sampling import inclusion, independence, watch_samples
from simulations.audit.short_run import short_study
from simulations.audit.silence import Silence, calibration, each_site, reuse

MODES = {"local": LOCAL, "distributed": DISTRIBUTED}
TABLES = {"classes": THREE_CLASSES, "findings": TWO_FINDINGS}
TASKS = {name: make_study({ONE_QUESTION: table}).task for name, table in TABLES.items()}
STRUCTURES = mask_study(ORGANS)
CHANGES = {
    **{name: {"task": task} for name, task in TASKS.items()},
    "structures": {"task": STRUCTURES.task, "model": STRUCTURES.model},
}
EACH = pytest.mark.parametrize(
    "study",
    [study.model_copy(update=changes) for study in MODES.values() for changes in CHANGES.values()],
    ids=[f"{task}-{mode}" for mode in MODES for task in CHANGES],
)


@pytest.mark.slow
@EACH
def test_no_patient_contributes_more_than_the_bound_and_none_changes_anothers_part(study: Study) -> None:
    found = clipping(study, TestKeys())
    assert not failed(found)
    assert not failed(coupling(study, TestKeys()))
    seen = {finding.what: finding.seen for finding in found}
    assert any(value is not None and value > 0.99 for value in seen.values()), "else clipping could not fail"


@pytest.mark.thorough
@EACH
def test_evaluation_moves_by_no_more_than_is_claimed_and_has_its_noise(study: Study) -> None:
    found = evaluation(study, TestKeys())
    assert len(found) == 3
    assert not failed((*count(study, TestKeys()), *found))


@pytest.mark.slow
@EACH
def test_silent_rounds_pass_all_checks_of_noise(study: Study) -> None:
    silence = Silence.of(study, TestKeys())
    assert not failed((*calibration(silence), *each_site(silence), *reuse(silence)))
    heard = silence.release.quiet().round(silence.model, [silence.patients], TestKeys()())
    assert abs(heard).max() < 1e-5 + 6 * silence.release.quiet().opening.standard_deviation(1)


@pytest.mark.slow
@EACH
def test_poisson_sampling_passes(study: Study) -> None:
    samples = watch_samples(study, TestKeys(), num_steps=200)
    assert not failed((*inclusion(samples), *independence(samples)))


@pytest.mark.thorough
@EACH
def test_the_one_run_bound_is_below_the_claim(study: Study) -> None:
    assert not failed(one_run(study, TestKeys()))


@EACH
def test_the_short_run_asks_one_question_and_keeps_the_promise(study: Study) -> None:
    short = short_study(study)
    assert short.task.kind == "binary-classification"
    assert (short.privacy, short.aggregation.min_cohort) == (study.privacy, study.aggregation.min_cohort)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("several", ["", "\nimages_per_patient = 3"])
def test_without_privacy_the_step_is_the_mean_of_what_each_patient_would_change(
    table: str, several: str
) -> None:
    """One patient's gradient is the same in any batch: the sum over a batch is that of batches of one."""
    study = make_study(
        {
            ONE_QUESTION: table,
            "sample_rate = 0.5": f"sample_rate = 1.0{several}",
            "local_steps = 2": "local_steps = 1",
        }
    )
    task = task_of(study)
    images = [part[None] for part in random_images(4, (1, 16, 16), TestKeys()())]
    together = patient_set(images, [0, 1, 1, 0], task)

    def update(physical_batch: int) -> torch.Tensor:
        model = build_model(study)
        run = OpenRun(
            run_id="run",
            study=study,
            task=task,
            model=model,
            patients={Role.TRAIN: together},
            num_patients=4,
            cost=None,
            evaluation_deviation=None,
            machine=Machine(device=torch.device("cpu"), physical_batch=physical_batch, mixed_precision=False),
        )
        weights = flatten(model)
        vector = training_vector(run, 1, weights, generator=TestKeys()()).vector
        return torch.from_numpy(training_layout(study, 1, num_weights=len(weights)).decode_sum(vector)[0])

    rows = study.training.rows_per_patient
    assert update(4 * rows).norm() > 1e-3
    assert torch.allclose(update(4 * rows), update(rows), atol=1e-6)
