"""`privacy.mode = "distributed"`: the sum over sites is the step of one who has all patients, with the same noise."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from journals import journal_in
from numpy.typing import NDArray
from safetensors.numpy import load_file
from studies import make_study
from test_server_aggregation import DISTRIBUTED
from test_simulations_faults import SitesHere

from client.admission import objections
from client.budget import training_cost
from client.global_step import clipped_sum, noise_share
from client.local_round import OpenRun, training_vector
from client.patients import PatientSet
from client.policy import policy_refusals
from client.roles import Role
from client.secure_session import SecureSession
from client.site_file import read_site
from client.training import Machine
from privacy.ledger import Ledger
from privacy.randomness import CryptographicGenerator
from server.aggregation import GlobalModel
from server.exchange import SiteReply
from server.round_loop import next_model
from server.run import checkpoint_path, federation_of, run_study
from server.run_state import RunContext
from shared_models.architectures import build_model
from shared_models.layouts import training_layout
from shared_models.manifest import flatten
from shared_models.messages import Request, Train, decode_request
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from shared_models.vector import IntVector
from simulations.preparation.hospitals import prepare
from simulations.preparation.sources import PhantomSource
from simulations.work_folder import enrol, write_site

STUDY = make_study({**DISTRIBUTED, "sample_rate = 0.5": "sample_rate = 1.0"}, private=True)
MACHINE = Machine(device=torch.device("cpu"), physical_batch=7, mixed_precision=False)


def patients(num: int, seed: int) -> PatientSet:
    made = torch.Generator().manual_seed(seed)
    return PatientSet(
        pseudonyms=tuple(str(number) for number in range(num)),
        images=torch.rand(num, 1, 16, 16, generator=made),
        labels=torch.randint(0, 2, (num,), generator=made),
        first_image=np.arange(num + 1),
    )


def together(hospitals: list[PatientSet]) -> PatientSet:
    """The patients of all, one image each."""
    num = sum(map(len, hospitals))
    return PatientSet(
        pseudonyms=tuple(str(number) for number in range(num)),
        images=torch.cat([own.images[: len(own)] for own in hospitals]),
        labels=torch.cat([own.labels for own in hospitals]),
        first_image=np.arange(num + 1),
    )


def open_run(own: PatientSet, study: Study = STUDY) -> OpenRun:
    return OpenRun(
        run_id="run",
        study=study,
        task=task_of(study),
        model=build_model(study),
        patients={Role.TRAIN: own},
        num_patients=len(own),
        cost=training_cost(study),
        evaluation_deviation=1.0,
        machine=MACHINE,
    )


def plain_sum(vectors: list[IntVector]) -> IntVector:
    total = np.sum([vector.view(np.int32).astype(np.int64) for vector in vectors], axis=0)
    assert np.abs(total).max() < 2**31
    return total.astype(np.int32).view(np.uint32)


@pytest.mark.slow
def test_with_as_many_honest_sites_as_noise_shares_the_sum_is_the_curators_bit_for_bit() -> None:
    """Injected noise: a curator adds at once what the sites add in shares.

    The curator has all patients, and rounds to the grid where the hospitals do. One who makes no difference between
    hospitals, clips the pooled patients and rounds once, is off by half a grid point for each hospital at most.
    """
    hospitals = [patients(20, 1), patients(13, 2)]
    assert STUDY.num_noise_shares == len(hospitals)
    weights = flatten(build_model(STUDY))
    layout = training_layout(STUDY, 1, num_weights=len(weights))
    keys = [bytes([number]) * 32 for number in (1, 2)]
    vectors = [
        training_vector(open_run(own), 1, weights, generator=CryptographicGenerator(key)).vector
        for own, key in zip(hospitals, keys, strict=True)
    ]
    summed, num_patients, _ = layout.decode_gradient(plain_sum(vectors))

    cost = training_cost(STUDY)
    assert cost is not None
    share = noise_share(STUDY, cost, layout)
    exact, noise = np.zeros(len(weights), dtype=np.int64), np.zeros(len(weights), dtype=np.int64)
    for own, key in zip(hospitals, keys, strict=True):
        generator = CryptographicGenerator(key)
        gradient = clipped_sum(
            build_model(STUDY),
            own,
            task=task_of(STUDY),
            training=STUDY.training,
            clipping_bound=share.clipping_bound,
            machine=MACHINE,
            generator=generator,
        )
        exact += share.on_grid(gradient)
        noise += np.rint(generator.normal(len(weights)) * share.deviation).astype(np.int64)
    curators = (exact + noise) / share.scale
    np.testing.assert_array_equal(summed, curators)
    assert num_patients == 33

    pooled = clipped_sum(
        build_model(STUDY),
        together(hospitals),
        task=task_of(STUDY),
        training=STUDY.training,
        clipping_bound=share.clipping_bound,
        machine=replace(MACHINE, physical_batch=33),
        generator=CryptographicGenerator(bytes(32)),
    )
    # Half a point for each hospital, and that sums within a batch are float32.
    allowed = 0.5 * len(hospitals) + 2.0**-20 * float(np.abs(pooled).max()) * share.scale
    assert np.abs(np.rint(pooled * share.scale) + noise - summed * share.scale).max() <= allowed + 0.5

    claimed = cost.noise_multiplier * share.max_grad_norm
    assert np.sqrt(2) * share.deviation / share.scale == pytest.approx(claimed)
    assert np.std(noise / share.scale) == pytest.approx(claimed, rel=0.02)


def test_a_patient_with_a_huge_gradient_moves_the_sum_by_no_more_than_the_bound() -> None:
    own = patients(9, 3)
    huge = replace(
        own, images=torch.cat([own.images, 1e6 * own.images[:1]]), labels=own.labels[[*range(9), 0]]
    )
    huge = replace(huge, pseudonyms=(*own.pseudonyms, "9"), first_image=np.arange(11))
    weights = flatten(build_model(STUDY))
    layout = training_layout(STUDY, 1, num_weights=len(weights))
    cost = training_cost(STUDY)
    assert cost is not None
    share = noise_share(STUDY, cost, layout)

    def on_grid(who: PatientSet) -> NDArray[np.int64]:
        summed = clipped_sum(
            build_model(STUDY),
            who,
            task=task_of(STUDY),
            training=STUDY.training,
            clipping_bound=share.clipping_bound,
            machine=MACHINE,
            generator=CryptographicGenerator(bytes(32)),
        )
        return share.on_grid(summed)

    moved = float(np.linalg.norm((on_grid(huge) - on_grid(own)).astype(np.float64)))
    assert 0.9 * share.scale < moved <= share.scale * share.max_grad_norm


def test_noise_beyond_the_range_of_the_grid_is_cut_and_the_reply_goes() -> None:
    layout = training_layout(STUDY, 1, num_weights=5)
    vector = layout.encode_gradient(
        gradient=np.array([2**40, -(2**40), 1, 0, -1]), weight=10**9, statistics=np.zeros(0, dtype=np.int64)
    )
    largest = layout.largest
    assert vector.view(np.int32).tolist() == [largest, -largest, 1, 0, -1, 100]


# Whole runs, with masks


RUN, SEED = "run-1", 3
RUN_STUDY = make_study(
    {
        **DISTRIBUTED,
        'modalities = ["CR"]': 'modalities = ["CR", "DX"]\nintensity = "percentiles"',
        "min_training = 1": "min_training = 5",
        "max_patients = 100": "max_patients = 1000",
        "validation_rounds = [1, 3]": "validation_rounds = [1, 3]",
        "learning_rate = 0.1": 'learning_rate = 0.05\noptimizer = "adam"\nema_decay = 0.5\nschedule = "cosine"',
    },
    private=True,
)


class Absent(SitesHere):
    """Real sites, of which one does not answer in a round."""

    def __init__(self, paths: Mapping[str, Path], missing: tuple[str, int] | None) -> None:
        super().__init__(paths)
        self.missing = missing
        self.payloads: dict[tuple[str, int], bytes] = {}

    def exchange(self, requests: Mapping[str, bytes], **values: Any) -> Iterator[SiteReply]:
        def is_there(site: str, request: Request, payload: bytes) -> bool:
            self.payloads[request.kind, getattr(request, "round", 0)] = payload
            return not isinstance(request, Train) or (site, request.round) != self.missing

        there = {site: text for site, text in requests.items() if is_there(site, *decode_request(text))}
        return super().exchange(there, **values)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    work = tmp_path_factory.mktemp("distributed")
    hospitals = prepare(
        PhantomSource(num_hospitals=4, patients_per_hospital=(30,), image_size=32), work / "images", SEED
    )
    return work, {
        hospital.name: write_site(work / "sites" / hospital.name, hospital, RUN_STUDY, seed=SEED)
        for hospital in hospitals
    }


@pytest.mark.slow
def test_a_masked_run_that_loses_a_site_makes_the_very_steps_of_the_sums(
    sites: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, paths = sites
    roster = enrol(work / "server", list(paths.values()), RUN_STUDY)
    vectors: list[IntVector] = []
    mask = SecureSession.mask

    def recorded(session: SecureSession, vector: IntVector) -> bytes:
        vectors.append(vector.copy())
        return mask(session, vector)

    monkeypatch.setattr(SecureSession, "mask", recorded)
    exchange = Absent(paths, ("hospital-2", 2))
    checkpoint = checkpoint_path(work / "server" / "state", RUN)
    context = RunContext(
        study=RUN_STUDY,
        run_id=RUN,
        exchange=exchange,
        federation=federation_of(RUN_STUDY, RUN, roster),
        checkpoint=checkpoint,
        patience_seconds=0.0,
        start_seconds=0.0,
    )
    run_study(context, engine="local")
    result = json.loads((checkpoint.parent / "result.json").read_text())
    sizes = [4, 3, 4]
    assert [len(entry["survivors"]) for entry in result["rounds"]] == sizes
    assert result["privacy"]["mode"] == "distributed"
    assert 4.9 < result["privacy"]["epsilon"] <= 5.0
    assert result["privacy"]["steps"] == 3
    assert {entry["epsilon"] == pytest.approx(result["privacy"]["epsilon"]) for entry in result["sites"]} == {
        True
    }

    model = GlobalModel.begin(flatten(build_model(RUN_STUDY)))
    averages = {}
    for number, size in enumerate(sizes, start=1):
        total, vectors = plain_sum(vectors[:size]), vectors[size:]
        model, _ = next_model(RUN_STUDY, number, model, total)
        averages[number] = model
    kept = load_file(checkpoint)
    for name, vector in (("weights", model.weights), ("average", model.average), *model.moments.items()):
        np.testing.assert_array_equal(kept[name].view(np.uint32), vector.view(np.uint32), err_msg=name)
    assert np.abs(model.average - model.weights).max() > 1e-4

    published = load_file(checkpoint.with_name("model.safetensors"))
    named = np.concatenate([published[name].ravel() for name, _ in build_model(RUN_STUDY).named_parameters()])
    np.testing.assert_array_equal(named, model.average)
    first = averages[1]
    validated = first.weights.astype("<f4").tobytes() + first.average.astype("<f4").tobytes()
    assert exchange.payloads["train", 2] == validated, "what is validated is the average"
    assert exchange.payloads["train", 3] == averages[2].weights.astype("<f4").tobytes()
    assert exchange.payloads["evaluate", 4] == model.average.astype("<f4").tobytes()


def test_a_hospital_that_does_not_rely_on_the_noise_of_others_refuses(
    sites: tuple[Path, dict[str, Path]],
) -> None:
    file = read_site(next(iter(sites[1].values())))
    assert policy_refusals(file, RUN_STUDY) == ()
    policy = file.policy.model_copy(update={"allow_distributed_noise": False})
    (words,) = policy_refusals(file.model_copy(update={"policy": policy}), RUN_STUDY)
    assert "policy.allow_distributed_noise = true" in words


def test_a_study_whose_noise_does_not_fit_on_the_grid_is_refused_before_it_is_charged(
    sites: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = read_site(next(iter(sites[1].values())))
    ledger = Ledger(journal_in(tmp_path, Ed25519PrivateKey.generate(), site=file.name))
    assert objections(file, ledger, RUN_STUDY) == ()
    monkeypatch.setattr("privacy.noise_share.MOST_ROUNDING", 1e-9)
    (against,) = objections(file, ledger, RUN_STUDY)
    assert against.reason == "policy"
    assert "train fewer weights" in against.words
