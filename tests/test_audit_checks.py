"""Each check lets the software pass as it is, and catches the mistake that it is there for, planted in real code."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from audits import BOTH, DISTRIBUTED, LOCAL, VOLUMES, TestKeys, failed, shown
from studies import make_study

import client.budget
import client.global_step
import client.local_round
import client.training
import privacy.noise_share
from client.local_round import gradient_sum
from client.patients import PatientSet
from client.site import Site
from client.training import GradientSum, Machine
from privacy.clipping import ClippedGradientSum
from privacy.ledger import Ledger
from privacy.noise import noised_sum
from privacy.noise_share import NoiseShare
from privacy.randomness import CryptographicGenerator
from shared_models.architectures import SmallCNN
from shared_models.augmentation import Augmentation
from shared_models.study import Model, Study, Training
from simulations.audit.canaries import loud_canaries, one_run, planned_guesses, play
from simulations.audit.contributions import clipping, coupling
from simulations.audit.counts import count, evaluation
from simulations.audit.inversion import inversion, reconstruct
from simulations.audit.sampling import inclusion, independence, watch_samples
from simulations.audit.short_run import short_study
from simulations.audit.silence import Silence, calibration, each_site, reuse
from simulations.audit.suite import run_with_restarts

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As at a hospital."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plant_noise(patch: Patch, factor: float) -> None:
    def planted(
        parts: list[torch.Tensor], *, standard_deviation: float, generator: CryptographicGenerator
    ) -> Any:
        return noised_sum(parts, standard_deviation=factor * standard_deviation, generator=generator)

    honest = privacy.noise_share.noised_counts

    def planted_on_grid(counts: Any, *, standard_deviation: float, **values: Any) -> Any:
        return honest(counts, standard_deviation=factor * standard_deviation, **values)

    patch.setattr(client.training, "noised_sum", planted)
    patch.setattr(privacy.noise_share, "noised_counts", planted_on_grid)


# Noise


@pytest.mark.thorough
@BOTH
def test_silent_rounds_pass_all_checks_of_noise(study: Study) -> None:
    silence = Silence.of(study, TestKeys())
    findings = [*calibration(silence), *each_site(silence), *reuse(silence)]
    assert not failed(tuple(findings))
    assert len(findings) >= 3 + 2 * 2 + 2, "every number of vanished sites"


@pytest.mark.thorough
def test_a_study_of_volumes_passes_the_same_checks() -> None:
    silence = Silence.of(VOLUMES, TestKeys())
    keys = TestKeys("volumes")
    findings = [*calibration(silence), *each_site(silence), *reuse(silence), *clipping(VOLUMES, keys)]
    findings += [*coupling(VOLUMES, keys), *count(VOLUMES, keys), *evaluation(VOLUMES, keys)]
    assert not failed(tuple(findings))
    release = loud_canaries(VOLUMES).quiet()
    plan = planned_guesses(release, num_rounds=6, num_canaries=200, delta=1e-4)
    played = play(release, TestKeys("canaries"), num_rounds=6, plan=plan)
    assert played.num_correct > 0.9 * played.num_guesses, "without noise the game is lost"
    assert short_study(VOLUMES).model.architecture == "small-cnn"


def test_the_short_run_of_a_deep_network_is_that_of_a_small_cnn() -> None:
    deep = 'architecture = "resnet-50"\nstem = "3x3"\nlast_blocks = 2\ntrainable = "last-block"'
    study = make_study({'architecture = "small-cnn"\nwidth = 8': deep}, private=True)
    assert short_study(study).model == Model(architecture="small-cnn", seed=study.model.seed)


@BOTH
def test_silent_rounds_are_silent_but_for_the_noise(study: Study) -> None:
    silence = Silence.of(study, TestKeys())
    heard = silence.release.quiet().round(silence.model, [silence.patients], TestKeys()())
    assert len(silence.patients) > 0
    quiet = silence.release.quiet().opening.standard_deviation(1)
    assert float(np.abs(heard).max()) < 1e-5 + 6 * quiet
    assert quiet < 1e-4


@BOTH
@pytest.mark.parametrize("factor", [0.0, 0.5, 0.9, 1.1])
def test_noise_that_is_off_halved_or_a_tenth_wrong_fails_the_calibration(
    monkeypatch: Patch, study: Study, factor: float
) -> None:
    """Whoever vanishes."""
    plant_noise(monkeypatch, factor)
    findings = calibration(Silence.of(study, TestKeys()))
    variances = [finding for finding in findings if "variance /" in finding.what]
    aggregation = study.aggregation
    assert len(variances) == 2 + aggregation.num_sites_max - aggregation.min_sites_in_sum
    for finding in variances:
        assert not finding.ok, shown(finding)


def test_shares_of_noise_that_forget_who_may_collude_fail_the_calibration(monkeypatch: Patch) -> None:
    """σ²/t from each in place of σ²/(t − c): site and auditor must not ask the same line of code."""
    forgotten = property(lambda study: study.aggregation.min_sites_in_sum)
    monkeypatch.setattr(Study, "num_noise_shares", forgotten)
    findings = calibration(Silence.of(DISTRIBUTED, TestKeys()))
    assert sum("variance /" in what for what in failed(findings)) == 3


def test_a_small_tensor_of_weights_without_noise_fails_the_calibration(monkeypatch: Patch) -> None:
    def planted(parts: list[torch.Tensor], **values: Any) -> list[torch.Tensor]:
        return [*noised_sum(parts[:-1], **values), parts[-1]]

    monkeypatch.setattr(client.training, "noised_sum", planted)
    (found,) = failed(calibration(Silence.of(LOCAL, TestKeys())))
    assert "weight tensors" in found


@BOTH
def test_one_hospital_without_noise_fails_the_check_of_each_hospital(
    monkeypatch: Patch, study: Study
) -> None:
    calls = itertools.count()

    def is_second() -> bool:
        return next(calls) % study.aggregation.num_sites_max == 1

    def planted(study: Study, task: Any, model: Any, **values: Any) -> GradientSum:
        if is_second():
            values["cost"] = replace(values["cost"], noise_multiplier=1e-9)
        return gradient_sum(study, task, model, **values)

    honest = NoiseShare.added_to

    def planted_on_grid(self: NoiseShare, gradient: Any, generator: CryptographicGenerator) -> Any:
        return self.on_grid(gradient) if is_second() else honest(self, gradient, generator)

    monkeypatch.setattr(client.local_round, "gradient_sum", planted)
    monkeypatch.setattr(NoiseShare, "added_to", planted_on_grid)
    silence = Silence.of(study, TestKeys())
    (found,) = failed(each_site(silence))
    assert "smallest variance" in found
    assert failed(calibration(silence)), "the other hospitals' noise does not hide it"


@BOTH
def test_one_hospital_with_the_noise_of_another_fails_the_check_of_reuse(study: Study) -> None:
    calls = itertools.count(1)

    def forked() -> CryptographicGenerator:
        return CryptographicGenerator(bytes([next(calls) // 2 % 256] * 32))

    assert failed(reuse(Silence.of(study, forked)))


def test_noise_that_begins_again_for_each_tensor_fails_the_check_of_reuse(monkeypatch: Patch) -> None:
    def planted(
        parts: list[torch.Tensor], *, standard_deviation: float, generator: CryptographicGenerator
    ) -> Any:
        key = generator.words(4).tobytes()
        for part in parts:
            noised_sum([part], standard_deviation=standard_deviation, generator=CryptographicGenerator(key))
        return parts

    monkeypatch.setattr(client.training, "noised_sum", planted)
    assert any("with themselves" in found for found in failed(reuse(Silence.of(LOCAL, TestKeys()))))


# Patients


@BOTH
def test_no_patient_contributes_more_than_the_bound_and_none_changes_anothers_part(study: Study) -> None:
    assert not failed(clipping(study, TestKeys()))
    assert not failed(coupling(study, TestKeys()))


@BOTH
def test_a_patient_whose_gradient_is_large_contributes_the_bound(study: Study) -> None:
    """Else the check of clipping could not fail."""
    seen = {finding.what: finding.seen for finding in clipping(study, TestKeys())}
    (large,) = [value for what, value in seen.items() if what.endswith("200 images")]
    assert large is not None
    assert large > 0.99


@pytest.mark.slow
@BOTH
def test_clipping_by_image_fails_the_check_of_clipping(monkeypatch: Patch, study: Study) -> None:
    """Each image of a sampled patient is clipped by itself: K = 1 is one image a patient, not one bound an image."""

    def planted(
        patients: np.ndarray, *, first_image: np.ndarray, generator: CryptographicGenerator
    ) -> np.ndarray:
        return np.concatenate([np.arange(first_image[p], first_image[p + 1]) for p in patients])

    monkeypatch.setattr(client.training, "pick_images", planted)
    found = failed(clipping(study, TestKeys()))
    assert len(found) == 3
    assert all("200 images" in what for what in found)


SEVERAL = [
    study.model_copy(update={"training": study.training.model_copy(update={"images_per_patient": 5})})
    for study in (LOCAL, DISTRIBUTED)
]
COPIES = [
    study.model_copy(
        update={
            "training": study.training.model_copy(
                update={"augmentations": 3, "augmentation": Augmentation(flip=("columns",), noise=0.02)}
            )
        }
    )
    for study in (LOCAL, DISTRIBUTED)
]


def plant_clipping_by_row(patch: Patch) -> None:
    """Each image and copy of a patient is clipped by itself."""
    honest = ClippedGradientSum.add

    def planted(self: ClippedGradientSum, *batch: torch.Tensor, patient: Any, **values: Any) -> None:
        honest(self, *batch, patient=None, **values)

    patch.setattr(ClippedGradientSum, "add", planted)


BOTH_SEVERAL = pytest.mark.parametrize("study", SEVERAL, ids=["local", "distributed"])


@pytest.mark.slow
@BOTH_SEVERAL
def test_with_several_images_of_a_patient_no_patient_contributes_more_either(study: Study) -> None:
    assert not failed(clipping(study, TestKeys()))
    assert not failed(coupling(study, TestKeys()))


@BOTH_SEVERAL
def test_clipping_by_image_fails_the_check_of_clipping_with_several_images_too(
    monkeypatch: Patch, study: Study
) -> None:
    plant_clipping_by_row(monkeypatch)
    found = failed(clipping(study, TestKeys()))
    assert len(found) >= 2
    assert all("200 images" in what for what in found)


@pytest.mark.slow
@pytest.mark.parametrize("study", COPIES, ids=["local", "distributed"])
def test_clipping_by_copy_fails_the_check_of_clipping_where_images_are_altered_several_times(
    monkeypatch: Patch, study: Study
) -> None:
    assert not failed(clipping(study, TestKeys()))
    plant_clipping_by_row(monkeypatch)
    assert any("200 images" in what for what in failed(clipping(study, TestKeys())))


@BOTH_SEVERAL
def test_a_patient_split_over_two_batches_fails_the_check_of_clipping(
    monkeypatch: Patch, study: Study
) -> None:
    """Each part is clipped by itself."""
    honest = client.training.ClippedGradientSum.add

    def planted(
        self: ClippedGradientSum, images: Any, labels: Any, *, patient: torch.Tensor, **values: Any
    ) -> None:
        for row in range(len(images)):
            one = slice(row, row + 1)
            honest(self, images[one], labels[one], patient=torch.zeros_like(patient[one]), **values)

    monkeypatch.setattr(ClippedGradientSum, "add", planted)
    assert any("200 images" in what for what in failed(clipping(study, TestKeys())))


@BOTH
def test_batch_statistics_that_couple_patients_fail_the_check_of_coupling(
    monkeypatch: Patch, study: Study
) -> None:
    forward = SmallCNN.forward
    monkeypatch.setattr(
        SmallCNN, "forward", lambda self, images: forward(self, images - images.mean(dim=0, keepdim=True) / 2)
    )
    assert len(failed(coupling(study, TestKeys()))) >= 6


def test_a_patient_whose_gradient_is_not_finite_and_spoils_the_sum_fails_the_check_of_coupling(
    monkeypatch: Patch,
) -> None:
    def planted(self: Any, images: torch.Tensor, labels: torch.Tensor, patient: None) -> None:
        for weight in self._model.parameters():
            weight.grad = None
        self._task.loss(self._model(images), labels).sum().backward()
        norm = torch.stack([weight.grad.norm() for weight in self._model.parameters()]).norm()
        self._sums = [weight.grad / norm for weight in self._model.parameters()]

    class Unguarded:
        def __init__(self, model: Any, task: Any, **values: Any) -> None:
            self._model, self._task = model, task
            self._sums = [torch.zeros_like(weight) for weight in model.parameters()]

        add = planted

        def take(self) -> list[torch.Tensor]:
            return self._sums

        def close(self) -> None:
            pass

    monkeypatch.setattr(client.local_round, "PrivateGradientSum", Unguarded)
    assert any("NaN" in what for what in failed(coupling(LOCAL, TestKeys())))


# Sampling


@pytest.mark.slow
@BOTH
def test_poisson_sampling_passes(study: Study) -> None:
    samples = watch_samples(study, TestKeys(), num_steps=300)
    assert not failed((*inclusion(samples), *independence(samples)))


@pytest.mark.slow
@BOTH
def test_sampling_by_image_fails_the_check_of_inclusion(monkeypatch: Patch, study: Study) -> None:
    """A patient is in if any image is drawn; what is added is still one image, clipped once."""

    def planted(
        gradient: GradientSum,
        patients: PatientSet,
        *,
        training: Training,
        machine: Machine,
        generator: CryptographicGenerator,
        voxel: Sequence[float] | None = None,
    ) -> None:
        drawn = generator.uniform(len(patients.images)) < training.sample_rate
        chosen = [
            next(image for image in patients.images_of(patient) if drawn[image])
            for patient in range(len(patients))
            if drawn[list(patients.images_of(patient))].any()
        ]
        if chosen:
            gradient.add(patients.images[chosen], patients.labels[chosen].float(), None)

    monkeypatch.setattr(client.training, "add_sample", planted)
    monkeypatch.setattr(client.global_step, "add_sample", planted)
    samples = watch_samples(study, TestKeys(), num_steps=300)
    assert any("200 images" in what for what in failed(inclusion(samples)))


def fixed_size(num_patients: int, *, sample_rate: float, generator: CryptographicGenerator) -> np.ndarray:
    size = round(num_patients * sample_rate)
    return np.sort(np.argsort(generator.uniform(num_patients))[:size])


class Epochs:
    """Everybody once, in random order, before anybody comes again."""

    def __init__(self) -> None:
        self.left: list[int] = []

    def __call__(
        self, num_patients: int, *, sample_rate: float, generator: CryptographicGenerator
    ) -> np.ndarray:
        if not self.left:
            self.left = np.argsort(generator.uniform(num_patients)).tolist()
        size = round(num_patients * sample_rate)
        batch, self.left = self.left[:size], self.left[size:]
        return np.sort(np.array(batch, dtype=np.int64))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planted", "told"),
    [(fixed_size, "size is off"), (Epochs(), "steps are off"), (Epochs(), "apart")],
)
def test_fixed_batches_fail_the_check_of_independence(
    monkeypatch: Patch, planted: Callable[..., np.ndarray], told: str
) -> None:
    monkeypatch.setattr(client.training, "sample_patients", planted)
    samples = watch_samples(LOCAL, TestKeys(), num_steps=300)
    assert any(told in what for what in failed(independence(samples)))
    assert not failed(inclusion(samples)[:2]), "each patient is in as often as it should be"


# A run with restarts


@pytest.fixture
def fixed_keys(monkeypatch: Patch) -> None:
    """The hospitals' own generators, too."""
    keys = TestKeys("hospitals")
    monkeypatch.setattr(CryptographicGenerator, "from_operating_system", staticmethod(keys))


@pytest.mark.slow
@pytest.mark.usefixtures("fixed_keys")
@BOTH
def test_a_short_run_with_restarts_passes(study: Study) -> None:
    outcome = run_with_restarts(study, TestKeys())
    assert {name: failed(findings) for name, findings in outcome.findings.items()} == {
        "accountant": [],
        "calibration": [],
        "reuse": [],
    }


@pytest.mark.slow
@pytest.mark.usefixtures("fixed_keys")
def test_an_accountant_that_is_reset_each_round_fails_the_check_of_the_accountant(monkeypatch: Patch) -> None:
    honest = Ledger.training_cost

    def planted(self: Ledger, run_id: str) -> Any:
        cost, rounds = honest(self, run_id), self.rounds(run_id)
        return None if cost is None else cost.after(rounds[-1].num_steps if rounds else 0)

    monkeypatch.setattr(Ledger, "training_cost", planted)
    found = failed(run_with_restarts(LOCAL, TestKeys()).findings["accountant"])
    assert ["by the ledgers" in what or "reports" in what for what in found] == [True, True]


@pytest.mark.thorough
@pytest.mark.usefixtures("fixed_keys")
def test_rounds_that_are_charged_without_their_steps_fail_the_check_of_the_accountant(
    monkeypatch: Patch,
) -> None:
    honest = Ledger.begin_round

    def planted(self: Ledger, run_id: str, number: int, *, num_steps: int) -> None:
        honest(self, run_id, number, num_steps=0 if number > 1 else num_steps)

    monkeypatch.setattr(Ledger, "begin_round", planted)
    assert any(
        "not charged" in what for what in failed(run_with_restarts(LOCAL, TestKeys()).findings["accountant"])
    )


@pytest.mark.thorough
@pytest.mark.usefixtures("fixed_keys")
@BOTH
def test_noise_that_is_reused_after_a_restart_fails_the_check_of_reuse(
    monkeypatch: Patch, study: Study
) -> None:
    """A generator seeded with the hospital's name, which counts rounds in memory."""
    begun: dict[int, int] = {}
    alive: list[Site] = []

    def planted(self: Site, run: Any, number: int) -> CryptographicGenerator:
        alive.append(self)
        begun[id(self)] = begun.get(id(self), 0) + 1
        return TestKeys(f"{self._file.name}|{begun[id(self)]}")()

    monkeypatch.setattr(Site, "_generator", planted)
    found = run_with_restarts(study, TestKeys()).findings
    assert any("restarts" in what for what in failed(found["reuse"]))
    assert not failed(found["calibration"]), "each round by itself looks right"


# The one-run audit


def claiming(study: Study, epsilon: float) -> Study:
    return study.model_copy(update={"privacy": study.privacy.model_copy(update={"epsilon": epsilon})})


@pytest.mark.slow
def test_the_number_of_guesses_is_fixed_by_the_study_alone() -> None:
    release = loud_canaries(claiming(LOCAL, 3.0))
    plan = planned_guesses(release, num_rounds=6, num_canaries=1000, delta=1e-4)
    assert plan == planned_guesses(release, num_rounds=6, num_canaries=1000, delta=1e-4)
    assert 0.5 < plan.num_correct / plan.num_guesses < 1.0
    assert replace(plan, num_correct=plan.num_guesses).epsilon > 3.0, "missing noise could be shown"


@pytest.mark.thorough
@pytest.mark.parametrize("epsilon", [1.0, 3.0])
@BOTH
def test_the_one_run_bound_is_below_the_claim(study: Study, epsilon: float) -> None:
    findings = one_run(claiming(study, epsilon), TestKeys())
    assert not failed(findings)
    seen = findings[0].seen
    assert seen is not None
    assert 0.0 < seen < epsilon


@pytest.mark.slow
@BOTH
def test_with_the_noise_off_the_one_run_bound_is_above_three(monkeypatch: Patch, study: Study) -> None:
    plant_noise(monkeypatch, 0.0)
    bound = one_run(claiming(study, 3.0), TestKeys())[0]
    assert bound.seen is not None
    assert bound.seen > 3.0
    assert not bound.ok


@pytest.mark.slow
@BOTH
def test_as_many_guesses_are_right_as_were_planned(study: Study) -> None:
    release = loud_canaries(claiming(study, 3.0))
    plan = planned_guesses(release, num_rounds=6, num_canaries=1000, delta=1e-4)
    played = play(release, TestKeys(), num_rounds=6, plan=plan)
    accuracy = plan.num_correct / plan.num_guesses
    allowed = 5 * (accuracy * (1 - accuracy) / plan.num_guesses) ** 0.5
    assert abs(played.num_correct / plan.num_guesses - accuracy) < allowed


# Pictures


@pytest.mark.thorough
@BOTH
def test_no_picture_comes_of_what_the_server_sees_and_one_comes_of_an_unprotected_gradient(
    study: Study,
) -> None:
    pictures = reconstruct(study, TestKeys(), num_patients=2)
    assert not failed(inversion(pictures))
    assert all(each.similarity("unprotected") > 0.8 for each in pictures)


@pytest.mark.slow
@BOTH
def test_with_the_noise_off_pictures_come_of_what_the_server_sees(monkeypatch: Patch, study: Study) -> None:
    plant_noise(monkeypatch, 0.0)
    found = failed(inversion(reconstruct(study, TestKeys(), num_patients=1)))
    assert len(found) == 2
    assert all("random" in what for what in found)


# Counts and evaluation


@pytest.mark.slow
def test_counts_and_evaluation_pass() -> None:
    assert not failed((*count(LOCAL, TestKeys()), *evaluation(LOCAL, TestKeys())))


@pytest.mark.thorough
@pytest.mark.parametrize("deviation", [0.0, 27.0, 33.0])
def test_a_count_with_other_noise_fails_the_check_of_the_count(monkeypatch: Patch, deviation: float) -> None:
    monkeypatch.setattr(client.budget, "COUNT_STANDARD_DEVIATION", deviation)
    assert failed(count(LOCAL, TestKeys()))


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.0, 0.9, 1.1])
def test_evaluation_with_other_noise_fails_the_check_of_the_evaluation(
    monkeypatch: Patch, factor: float
) -> None:
    honest = client.local_round.noised_counts

    def planted(counts: Any, *, standard_deviation: float, **values: Any) -> Any:
        return honest(counts, standard_deviation=factor * standard_deviation, **values)

    monkeypatch.setattr(client.local_round, "noised_counts", planted)
    assert failed(evaluation(LOCAL, TestKeys()))
