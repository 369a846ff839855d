"""A site decides by itself: what it answers, what it refuses, and what it has on disk before it trains.

Every reply with patients in it is masked. The server here is the real one, step by step, and so are the site's two
peers, who train nothing and send zeros: the sum that is opened is what the site under test would have sent.
"""

import base64
import hashlib
import json
import logging
import shutil
import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from dicom_files import Hospital, dataset
from journals import journal_in
from secure_sites import secrets_in
from site_talk import ALL, ME, NAME, RUN, Conversation
from studies import make_study

from client import local_round as local_round_module
from client import site_file as site_files
from client.site import open_site, result_path
from client.site_file import SiteFile, read_site
from privacy.accounting import TrainingCost
from privacy.secure_aggregation import sealing, server_setup, statements
from privacy.secure_aggregation.messages import (
    Advertisement,
    AdvertiseRequest,
    ConfirmRequest,
    MaskedVector,
    ShareRequest,
)
from privacy.secure_aggregation.site_round import Begun
from privacy.secure_aggregation.site_setup import Shared
from shared_models.configuration import ConfigurationError
from shared_models.manifest import flatten
from shared_models.messages import (
    Advertise,
    Answer,
    Confirm,
    Escrow,
    Evaluate,
    Refusal,
    Share,
    Train,
    Unmask,
    decode_reply,
)
from shared_models.study import Study
from shared_models.vector import IntVector
from simulations.work_folder import enrol


def fill(hospital: Hospital, num: int = 60) -> None:
    random = np.random.default_rng(1)
    rows = []
    for number in range(num):
        positive = number % 2
        pixels = random.integers(0, 120, (20, 20)).astype("uint8")
        pixels[5:12, 5:12] += np.uint8(100 * positive)
        hospital.add(f"{number:04d}.dcm", dataset(pixels, patient=f"PAT-{number:04d}", image=str(number)))
        rows.append((f"PAT-{number:04d}", "opacity" if positive else "clear"))
    hospital.label(rows)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> Hospital:
    made = Hospital(tmp_path_factory.mktemp("hospital"))
    fill(made)
    return made


def site_file(hospital: Hospital, tmp_path: Path, **policy: object) -> SiteFile:
    file = hospital.site()
    allowed = file.policy.model_copy(update={"allow_no_privacy": True, **policy})
    return file.model_copy(update={"name": NAME, "state": tmp_path / "state", "policy": allowed})


def start(hospital: Hospital, tmp_path: Path, study: Study, **policy: object) -> Conversation:
    return Conversation(site_file(hospital, tmp_path, **policy), study)


def ready(hospital: Hospital, tmp_path: Path, study: Study, **policy: object) -> Conversation:
    """A run that is open, and round secrets from round 1 on."""
    talk = start(hospital, tmp_path, study, **policy)
    assert isinstance(talk.open(), Answer)
    talk.prepare()
    return talk


def reason(reply: Answer | Refusal) -> str:
    assert isinstance(reply, Refusal)
    return reply.reason


def all_erased(states: Iterable[object]) -> bool:
    return all(value is None for state in states for _, value in secrets_in(state))


@pytest.mark.slow
def test_a_site_trains_evaluates_and_writes_its_own_result(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study())
    for number in (1, 2, 3):
        assert isinstance(talk.train(number)[0], Answer)
        assert talk.layout.num_statistics == (41 if number == 2 else 0), "the model of round 1 is validated"
        update, weight, counts = talk.layout.decode_sum(talk.opened())
        assert weight == 1
        assert np.abs(update).max() > 0
        assert int(counts[:40].sum()) == (0 if number != 2 else patients(talk, "validation"))
    assert isinstance(talk.evaluate()[0], Answer)
    _, _, counts = talk.layout.decode_sum(talk.opened())
    assert int(counts[:40].sum()) == patients(talk, "validation"), "the model of round 3 is validated"
    assert int(counts[41:81].sum()) == patients(talk, "test")
    assert isinstance(talk.close(), Answer)
    own = own_result(talk)
    assert own["patients_used"] == own["patients_found"] == 60
    assert [entry["round"] for entry in own["rounds"]] == [1, 2, 3]
    assert set(own["validation"]) == {"1", "3"}
    assert own["test"]["num_patients"] == own["patients_by_role"]["test"]


def own_result(talk: Conversation) -> dict[str, Any]:
    return json.loads(result_path(talk.file.state, talk.run_id).read_text(encoding="utf-8"))


def patients(talk: Conversation, role: str) -> int:
    return int(own_result(talk)["patients_by_role"][role])


@pytest.mark.slow
def test_the_same_training_leaves_under_other_masks_each_time_and_opens_to_the_same_sum(
    hospital, tmp_path
) -> None:
    study = make_study()
    seeded = site_file(hospital, tmp_path / "first").model_copy(
        update={"testing": site_files.Testing(sampling_seed=1)}
    )
    Conversation(seeded, study).open()
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    sent, opened = [], []
    for name in ("first", "second"):
        talk = Conversation(seeded.model_copy(update={"state": tmp_path / name / "state"}), study)
        talk.open()
        talk.prepare()
        talk.train(1)
        sent.append(MaskedVector.from_bytes(talk.received, length=talk.layout.length).vector[:-1])
        opened.append(talk.opened())
    assert np.array_equal(opened[0], opened[1])
    assert not (sent[0] == sent[1]).any()
    assert not (sent[0] == opened[0]).any()


def test_another_study_is_refused_before_any_image_is_opened(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study())
    talk.study = make_study({"learning_rate = 0.1": "learning_rate = 0.2"})
    assert reason(talk.open()) == "study-not-approved"
    assert not (tmp_path / "state" / "index.json").exists()


def test_a_study_without_privacy_is_refused_unless_the_hospital_allows_it(hospital, tmp_path) -> None:
    assert reason(start(hospital, tmp_path, make_study(), allow_no_privacy=False).open()) == "policy"
    assert not (tmp_path / "state" / "index.json").exists()


def test_a_lifetime_cap_refuses_studies_that_promise_some_patients_nothing(hospital, tmp_path) -> None:
    cap = {"lifetime_epsilon": 10.0, "lifetime_delta": 1e-4}
    assert reason(start(hospital, tmp_path, make_study(), **cap).open()) == "policy"


def test_predictable_noise_is_refused_where_the_study_has_privacy(hospital, tmp_path) -> None:
    file = site_file(hospital, tmp_path).model_copy(update={"testing": site_files.Testing(sampling_seed=1)})
    assert reason(Conversation(file, make_study(private=True)).open()) == "policy"


def test_a_study_whose_sums_are_smaller_than_the_hospital_wants_is_refused(hospital, tmp_path) -> None:
    """Before any image is opened, and in words that the site can set right."""
    assert reason(start(hospital, tmp_path, make_study(), min_cohort=3).open()) == "policy"
    assert not (tmp_path / "state" / "index.json").exists()
    larger = make_study({"min_cohort = 2": "min_cohort = 3"})
    assert isinstance(start(hospital, tmp_path, larger, min_cohort=3).open(), Answer)


def test_a_model_of_another_version_is_refused(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study())
    assert (
        reason(talk.ask(talk.open_header().model_copy(update={"manifest_hash": "0" * 64}))[0])
        == "model-differs"
    )


def test_too_few_training_patients_are_refused(hospital, tmp_path) -> None:
    study = make_study({"min_training = 1": "min_training = 1000"})
    assert reason(start(hospital, tmp_path, study).open()) == "data"


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        ("min_patients_per_class = 1000", "quality.min_patients_per_class asks for 1000"),
        (
            'views = ["PA"]\nunstated = "refuse"\nmax_unusable_share = 0.5',
            "quality.max_unusable_share allows 50.0%",
        ),
    ],
)
def test_below_a_floor_of_the_study_a_run_is_refused_before_anything_is_spent(
    hospital, tmp_path, quality: str, words: str
) -> None:
    study = make_study({"[model]": f"[quality]\n{quality}\n\n[model]"}, private=True)
    talk = start(hospital, tmp_path, study)
    reply, payload = talk.ask(talk.open_header())
    assert (reply, payload) == (Refusal(run_id=RUN, reason="data"), b"")
    assert not talk.ledger.runs()
    refused = list(journal_in(talk.file.state).entries("refused"))
    assert words in str(refused[-1].body)


def test_a_run_that_was_not_opened_is_refused(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study())
    assert reason(talk.advertise(first_round=1)[0]) == "not-open"
    assert reason(talk.train(1)[0]) == "not-open"


# Steps run once: the identical request gets the identical reply, any other is refused.


def test_an_identical_request_gets_the_stored_reply(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    first, second = talk.train(1), talk.train(1)
    assert first == second
    assert isinstance(first[0], Answer)
    assert [entry.round for entry in talk.ledger.rounds(RUN)] == [1]
    talk.opened()


def test_each_step_of_a_setup_can_be_repeated_and_not_changed(hospital, tmp_path) -> None:
    """A server that never got the reply asks again; the reply is what it was, and what follows is good."""
    talk = start(hospital, tmp_path, make_study())
    talk.open()
    context = talk.new_batch(first_round=1)
    payload = server_setup.advertise_request(context).to_bytes()
    advertisement = talk.ask(talk.header(Advertise), payload)
    assert talk.ask(talk.header(Advertise), payload) == advertisement
    advertising = talk.peers.advertise(context)
    assert advertising.advertisements[ME] == Advertisement.from_bytes(advertisement[1])

    shares = talk.peers.share(advertising)
    assert talk.answered(Share, advertising.request().to_bytes()) == shares[ME].to_bytes()
    other = replace(advertising.advertisements[1], signature=bytes(64))
    changed = ShareRequest(advertisements={**advertising.advertisements, 1: other})
    assert reason(talk.ask(talk.header(Share), changed.to_bytes())[0]) == "no-batch"

    request = server_setup.escrow_requests(advertising, shares)[ME].to_bytes()
    escrows = talk.peers.escrow(advertising, shares)
    assert talk.answered(Escrow, request) == escrows[ME].to_bytes()
    assert reason(talk.ask(talk.header(Escrow), request[:-1])[0]) == "no-batch"
    talk.batch = server_setup.finish_setup(advertising, shares, escrows)
    talk.train(1)
    talk.opened()


def test_the_same_round_with_another_model_is_refused_and_not_charged_again(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    first = talk.train(1)
    good, talk.weights = talk.weights, talk.weights + np.float32(0.01)
    assert reason(talk.train(1)[0]) == "protocol"
    assert len(talk.ledger.rounds(RUN)) == 1
    talk.weights = good
    assert talk.train(1) == first, "a refusal does not take the place of the reply"
    talk.opened()


def test_a_second_final_test_with_another_model_is_refused(hospital, tmp_path) -> None:
    """Each noised evaluation costs test patients; the study pays for one."""
    talk = ready(hospital, tmp_path, make_study(private=True))
    assert isinstance(talk.evaluate()[0], Answer)
    talk.weights = talk.weights + np.float32(0.01)
    assert reason(talk.evaluate()[0]) == "protocol"
    talk.prepare(first_round=5)
    assert reason(talk.evaluate()[0]) == "protocol"
    assert reason(talk.evaluate(5)[0]) == "budget", "the test is the round after the last, and no other"
    assert [entry.round for entry in talk.ledger.rounds(RUN)] == [4]


def test_a_lost_reply_of_the_final_test_is_given_again_and_not_drawn_anew(hospital, tmp_path) -> None:
    """The server resumes: it opens the run again and repeats the test."""
    talk = ready(hospital, tmp_path, make_study(private=True))
    first = talk.evaluate()
    assert isinstance(first[0], Answer)
    talk.open()
    assert talk.evaluate() == first


def test_a_restarted_agent_gives_no_reply_again_and_makes_no_second_test(hospital, tmp_path) -> None:
    """Its masks are gone with its memory, and other masks on the same figures would be another release."""
    talk = ready(hospital, tmp_path, make_study(private=True))
    assert isinstance(talk.evaluate()[0], Answer)
    talk.restart()
    assert reason(talk.evaluate()[0]) == "not-open"
    talk.open()
    assert reason(talk.evaluate()[0]) == "no-batch"
    assert reason(talk.advertise(first_round=4)[0]) == "protocol"
    talk.prepare(first_round=5)
    assert reason(talk.evaluate()[0]) == "protocol"
    assert [entry.round for entry in talk.ledger.rounds(RUN)] == [4]


def test_a_refusal_is_not_stored_as_the_reply_for_ever(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study(private=True))
    assert reason(talk.evaluate()[0]) == "not-open"
    talk.open()
    assert reason(talk.evaluate()[0]) == "no-batch"
    talk.prepare()
    assert isinstance(talk.evaluate()[0], Answer)


# What a restart keeps, and what it does not.


@pytest.mark.slow
def test_the_accountant_survives_a_restart_of_the_agent(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    talk.train(1)
    first = talk.ledger.run(RUN)

    talk.restart()
    assert reason(talk.train(2)[0]) == "not-open"
    assert isinstance(talk.open(), Answer)
    assert reason(talk.train(2)[0]) == "no-batch"
    talk.prepare(first_round=2)
    assert isinstance(talk.train(2)[0], Answer)
    talk.opened()
    ledger = talk.ledger
    assert ledger.run(RUN) == first, "the noised count is drawn once a run"
    cost = ledger.training_cost(RUN)
    assert cost is not None
    assert cost.num_steps == 4
    assert [done["num_steps"] for done in own_result(talk)["rounds"]] == [2, 4]
    talk.close()
    assert own_result(talk)["epsilon"] == pytest.approx(
        TrainingCost(sample_rate=0.5, noise_multiplier=cost.noise_multiplier, num_steps=4).epsilon(1e-4)
    )


def test_a_round_that_was_begun_is_never_begun_again_by_a_restarted_agent(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    talk.train(1)
    talk.restart()
    talk.open()
    assert reason(talk.train(1)[0]) == "no-batch"
    assert reason(talk.advertise(first_round=1)[0]) == "protocol"
    talk.prepare(first_round=2)
    assert reason(talk.train(1)[0]) == "protocol"
    assert [entry.round for entry in talk.ledger.rounds(RUN)] == [1]


def test_the_ledger_refuses_a_round_that_another_process_began(hospital, tmp_path) -> None:
    """The session does not know of it, the ledger does; nothing of the round's secrets stays, the next one works."""
    talk = ready(hospital, tmp_path, make_study(private=True))
    talk.ledger.begin_round(RUN, 1, num_steps=2)
    assert reason(talk.train(1)[0]) == "round-already-attempted"
    assert talk.session._round is None
    assert isinstance(talk.train(2)[0], Answer)
    talk.opened()
    assert [entry.round for entry in talk.ledger.rounds(RUN)] == [1, 2]


def test_opening_a_run_again_keeps_the_sites_own_result(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    talk.train(1)
    talk.train(2)
    talk.close()
    before = own_result(talk)
    assert len(before["rounds"]) == 2
    talk.restart()
    talk.open()
    assert own_result(talk) == before


# What is refused costs nothing.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "round_set", "change", "told"),
    [
        pytest.param(1, (1, 2), None, "protocol", id="a round set without this site"),
        pytest.param(1, (0,), None, "protocol", id="a round set of this site alone"),
        pytest.param(1, (), None, "protocol", id="an empty round set"),
        pytest.param(1, (1, 0), None, "protocol", id="a round set out of order"),
        pytest.param(1, (0, 0, 1), None, "protocol", id="a round set with a site twice"),
        pytest.param(1, (0, 1, 3), None, "protocol", id="a round set with nobody's position"),
        pytest.param(1, (-1, 0, 1), None, "protocol", id="a round set with a negative position"),
        pytest.param(1, ALL, lambda weights: weights[:-1], "failed", id="a model that is too short"),
        pytest.param(1, ALL, lambda weights: np.append(weights, weights[:1]), "failed", id="too long"),
        pytest.param(1, ALL, lambda weights: weights * np.float32(np.nan), "failed", id="not a number"),
        pytest.param(1, ALL, lambda weights: weights + np.float32(np.inf), "failed", id="infinite"),
        pytest.param(4, ALL, None, "budget", id="a round beyond the study"),
    ],
)
def test_a_bad_request_to_train_costs_nothing_and_the_good_one_still_works(
    hospital, tmp_path, number: int, round_set: tuple[int, ...], change: Any, told: str
) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    setup, secrets = talk.session._setup, dict(secrets_in(talk.session._setup))
    good = talk.weights
    if change is not None:
        talk.weights = change(good)
    assert reason(talk.train(number, round_set=round_set)[0]) == told
    assert not talk.ledger.rounds(RUN)
    assert talk.session._setup is setup
    assert talk.session._round is None
    assert dict(secrets_in(setup)) == secrets
    talk.weights = good
    assert isinstance(talk.train(1)[0], Answer)
    talk.opened()


@pytest.mark.slow
def test_a_round_of_another_batch_costs_nothing(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study(private=True))
    talk.open()
    talk.prepare(first_round=2)
    assert reason(talk.train(1)[0]) == "protocol"
    assert not talk.ledger.rounds(RUN)
    assert isinstance(talk.train(2)[0], Answer)


def test_rounds_beyond_the_study_are_refused(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    assert reason(talk.train(4)[0]) == "budget"
    assert reason(talk.train(5)[0]) == "budget"
    assert reason(talk.evaluate(3)[0]) == "budget"
    assert not talk.ledger.rounds(RUN)


@pytest.mark.slow
def test_more_reductions_of_the_learning_rate_than_validations_allow_are_refused(hospital, tmp_path) -> None:
    """The model of round 1 is validated, which is known from round 3 on; other studies know of no reductions."""
    rate = "learning_rate = 0.1"
    plateau = make_study({rate: f'{rate}\nschedule = "plateau"'}, private=True)
    talk = ready(hospital, tmp_path, plateau)
    assert reason(talk.train(2, reductions=1)[0]) == "policy"
    assert reason(talk.train(3, reductions=2)[0]) == "policy"
    assert not talk.ledger.rounds(RUN)
    assert isinstance(talk.train(3, reductions=1)[0], Answer)
    assert reason(ready(hospital, tmp_path / "other", make_study()).train(3, reductions=1)[0]) == "policy"


@pytest.mark.slow
def test_a_run_that_ends_early_costs_what_was_spent(hospital, tmp_path) -> None:
    """One round of three, then the final test: epsilon is that of its steps, below the study's."""
    rate = "learning_rate = 0.1"
    study = make_study(
        {rate: f"{rate}\nearly_stopping = 1", "validation_rounds = [1, 3]": "validation_rounds = [1, 2]"},
        private=True,
    )
    talk = ready(hospital, tmp_path, study)
    assert isinstance(talk.train(1)[0], Answer)
    talk.opened()
    talk.prepare(first_round=study.test_round)
    assert isinstance(talk.evaluate()[0], Answer)
    spent, planned = talk.ledger.training_cost(RUN), talk.ledger.planned_cost(RUN, num_steps=study.num_steps)
    assert spent is not None
    assert planned is not None
    assert spent.num_steps == study.training.local_steps
    assert spent.noise_multiplier == planned.noise_multiplier, "the noise is that of all rounds"
    assert spent.epsilon(1e-4) < 0.8 * planned.epsilon(1e-4)


def test_bytes_that_are_no_request_are_refused_and_the_site_goes_on(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study())
    assert reason(decode_reply(talk.site.handle(b"garbage"))[0]) == "failed"
    assert isinstance(talk.open(), Answer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Share, Escrow, Train, Evaluate, Confirm, Unmask])
def test_without_a_batch_every_step_but_the_first_is_refused_as_no_batch(hospital, tmp_path, kind) -> None:
    talk = start(hospital, tmp_path, make_study())
    talk.open()
    values: dict[str, Any] = {"round": 4 if kind is Evaluate else 1} if "round" in kind.model_fields else {}
    if "round_set" in kind.model_fields:
        values["round_set"] = ALL
    payload = talk.weights.tobytes() if "round_set" in values else b"whatever"
    assert reason(talk.ask(talk.header(kind, **values), payload)[0]) == "no-batch"
    assert not talk.ledger.rounds(RUN)
    talk.prepare()
    assert isinstance(talk.train(1)[0], Answer)


@pytest.mark.slow
def test_protocol_messages_that_are_none_are_refused_and_the_setup_goes_on(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study())
    talk.open()
    assert reason(talk.ask(talk.header(Advertise), b"garbage")[0]) == "protocol"
    advertising = talk.peers.advertise(talk.new_batch(first_round=1))
    assert reason(talk.ask(talk.header(Share), b"garbage")[0]) == "protocol"
    shares = talk.peers.share(advertising)
    assert reason(talk.ask(talk.header(Escrow), b"garbage")[0]) == "protocol"
    talk.batch = server_setup.finish_setup(advertising, shares, talk.peers.escrow(advertising, shares))
    talk.train(1)
    total = talk.collected()
    assert reason(talk.ask(talk.header(Confirm, round=1), b"garbage")[0]) == "protocol"
    confirmations = talk.peers.confirm(total)
    assert reason(talk.ask(talk.header(Unmask, round=1), b"garbage")[0]) == "protocol"
    talk.peers.unmask(total, confirmations)


@pytest.mark.slow
def test_another_version_of_the_roster_is_told_apart_and_leaves_the_batch(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study())
    other = AdvertiseRequest(
        number=2, first_round=1, roster_hash=hashlib.sha256(b"version 2").digest(), cohort=talk.peers.names
    )
    assert reason(talk.ask(talk.header(Advertise), other.to_bytes())[0]) == "roster-differs"
    talk.train(1)
    talk.opened()


@pytest.mark.slow
def test_a_cohort_that_is_too_small_is_refused_and_leaves_the_batch(hospital, tmp_path) -> None:
    """The hospital's own least number, and the study's, whatever the server puts into its request."""
    study = make_study({"min_cohort = 2": "min_cohort = 3"})
    talk = ready(hospital, tmp_path, study, min_cohort=3)
    request = server_setup.advertise_request(talk.new_batch(first_round=1))
    fewer = replace(request, cohort=request.cohort[:2])
    assert reason(talk.ask(talk.header(Advertise), fewer.to_bytes())[0]) == "protocol"
    assert reason(talk.train(1, round_set=(0, 1))[0]) == "protocol"
    assert not talk.ledger.rounds(RUN)
    assert isinstance(talk.train(1)[0], Answer)
    talk.opened()


# What stays in memory, and for how long.


@pytest.mark.slow
def test_the_charge_stays_when_training_fails_and_the_next_round_answers(
    hospital, tmp_path, monkeypatch
) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    charged: list[list[int]] = []
    held: list[object] = []

    def out_of_memory(*_: object, **__: object) -> None:
        charged.append([entry.round for entry in talk.ledger.rounds(RUN)])
        held.extend([talk.session._setup, talk.session._round])
        assert not all_erased(held)
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(local_round_module, "train", out_of_memory)
        assert reason(talk.train(1)[0]) == "failed"
    assert charged == [[1]], "the charge is on disk before training begins"
    assert all_erased(held), "a round that fails leaves no secret in memory"
    assert reason(talk.train(2)[0]) == "not-open"
    assert isinstance(talk.open(), Answer)
    assert reason(talk.train(2)[0]) == "no-batch"
    talk.prepare(first_round=2)
    assert isinstance(talk.train(2)[0], Answer)
    talk.opened()
    assert [entry.round for entry in talk.ledger.rounds(RUN)] == [1, 2]


def test_confirm_and_unmask_are_answered_for_the_last_round_only(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study())
    talk.train(1)
    first = talk.collected()
    talk.train(2)
    total = talk.collected()
    for number, message in ((1, first), (3, total)):
        request = message.confirm_request().to_bytes()
        assert reason(talk.ask(talk.header(Confirm, round=number), request)[0]) == "no-batch"
    about_first = first.confirm_request().to_bytes()
    assert reason(talk.ask(talk.header(Confirm, round=2), about_first)[0]) == "protocol"
    confirmations = talk.peers.confirm(total)
    shown = total.unmask_request(confirmations).to_bytes()
    for number in (1, 3):
        assert reason(talk.ask(talk.header(Unmask, round=number), shown)[0]) == "no-batch"
    talk.peers.unmask(total, confirmations)


def test_the_same_unmask_gets_the_same_shares_until_the_next_round(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study())
    talk.train(1)
    total = talk.collected()
    request = talk.header(Unmask, round=1)
    shown = total.unmask_request(talk.peers.confirm(total)).to_bytes()
    first = talk.ask(request, shown)
    assert isinstance(first[0], Answer)
    assert talk.ask(request, shown) == first
    assert reason(talk.ask(request, shown[:-1])[0]) == "no-batch", "the shares are erased, the reply is kept"
    talk.train(2)
    assert reason(talk.ask(request, shown)[0]) == "no-batch"
    assert first[1] not in (reply for _, reply in talk.site._replies.values())
    talk.opened()


def test_other_survivors_are_not_confirmed_once_some_were(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study())
    talk.train(1)
    total = talk.collected()
    request, all_three = talk.header(Confirm, round=1), total.confirm_request()
    first = talk.ask(request, all_three.to_bytes())
    fewer = ConfirmRequest(survivors={site: all_three.survivors[site] for site in (0, 1)})
    assert reason(talk.ask(request, fewer.to_bytes())[0]) == "protocol"
    assert talk.ask(request, all_three.to_bytes()) == first
    talk.peers.unmask(total, talk.peers.confirm(total))


def test_closing_erases_everything(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study())
    first = talk.train(1)
    held = [talk.session._setup, talk.session._round]
    assert isinstance(first[0], Answer)
    assert isinstance(talk.close(), Answer)
    assert all_erased(held)
    assert talk.site._session is None
    assert not talk.site._replies
    assert reason(talk.train(1)[0]) == "not-open", "the identical request is not answered any more"


def test_another_run_and_a_new_batch_end_what_was_before(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study(), max_runs_per_study=2)
    talk.train(1)
    held = [talk.session._setup, talk.session._round]
    talk.prepare(first_round=2)
    assert all_erased(held)
    assert set(talk.site._replies) == {"advertise", "share", "escrow"}
    held = [talk.session._setup]
    assert isinstance(talk.open("run-2"), Answer)
    assert all_erased(held)
    assert not talk.site._replies


# Budgets, and what the reply tells.


def test_a_full_disk_costs_the_local_report_and_not_the_reply(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    folder = result_path(tmp_path / "state", RUN).parent
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("a file where a folder should be", encoding="utf-8")
    assert isinstance(talk.train(1)[0], Answer)
    assert isinstance(talk.evaluate()[0], Answer)


def test_a_server_cannot_run_a_study_more_often_than_the_hospital_allows(hospital, tmp_path) -> None:
    """Without a cap, every new run id would be a fresh count, fresh noise and the study's epsilon again."""
    talk = start(hospital, tmp_path, make_study(private=True), max_runs_per_study=2)
    assert isinstance(talk.open("run-1"), Answer)
    assert isinstance(talk.open("run-2"), Answer)
    assert reason(talk.open("run-3")) == "budget"
    assert isinstance(talk.open("run-1"), Answer), "a run that was begun can be resumed"
    assert len(talk.ledger.runs()) == 2


@pytest.mark.parametrize("first_private", [True, False])
def test_a_run_id_cannot_be_used_again_under_another_study(hospital, tmp_path, first_private: bool) -> None:
    """The ledger's noise, or an exact count, of the first study would be taken for the second's."""
    first = start(hospital, tmp_path, make_study(private=first_private))
    assert isinstance(first.open(), Answer)
    changed = make_study({"learning_rate = 0.1": "learning_rate = 0.2"}, private=True)
    assert reason(start(hospital, tmp_path, changed).open()) == "budget"
    assert len(first.ledger.runs()) == 1


def test_after_all_rounds_epsilon_is_within_the_studys_target(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    epsilons = []
    for number in (1, 2, 3):
        talk.train(number)
        cost = talk.ledger.training_cost(RUN)
        assert cost is not None
        epsilons.append(cost.epsilon(1e-4))
    assert epsilons == sorted(set(epsilons)), "every round costs"
    assert 4.9 < epsilons[-1] <= 5.0


def test_a_run_that_would_pass_the_lifetime_cap_is_refused_and_an_earlier_one_counts(
    hospital, tmp_path
) -> None:
    cap = {"lifetime_epsilon": 9.0, "lifetime_delta": 1e-4, "max_runs_per_study": 9}
    talk = ready(hospital, tmp_path, make_study(private=True), **cap)
    for number in (1, 2, 3):
        assert isinstance(talk.train(number)[0], Answer)
    talk.restart()
    assert isinstance(talk.open(), Answer), "the same run is not counted twice"
    assert reason(talk.open("run-2")) == "budget"
    assert talk.ledger.run("run-2") is None


@pytest.mark.slow
def test_the_reply_has_the_same_length_whatever_the_data(hospital, tmp_path) -> None:
    other = Hospital(tmp_path / "other")
    fill(other, num=23)
    lengths = []
    for number, made in enumerate((hospital, other)):
        talk = ready(made, tmp_path / str(number), make_study(private=True))
        lengths.append([len(talk.train(1)[1]), len(talk.train(2)[1]), len(talk.evaluate()[1])])
    assert lengths[0] == lengths[1]


def test_the_noised_count_and_not_the_true_one_divides_and_weighs(hospital, tmp_path) -> None:
    study = make_study({'weights = "equal"': 'weights = "patients"\nmax_patients = 500'}, private=True)
    talk = ready(hospital, tmp_path, study)
    talk.train(1)
    _, weight, _ = talk.layout.decode_sum(talk.opened())
    run = talk.ledger.run(RUN)
    assert run is not None
    assert weight == min(run.noised_count, 500)


@pytest.mark.slow
def test_noise_is_never_reused_after_a_restart(hospital, tmp_path) -> None:
    """Two copies of one state train the same round from the same model; only the noise can differ, and does."""
    study = make_study({"sample_rate = 0.5": "sample_rate = 1.0"}, private=True)
    start(hospital, tmp_path / "first", study).open()
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    updates = []
    for name in ("first", "second"):
        talk = ready(hospital, tmp_path / name, study)
        talk.train(1)
        updates.append(talk.layout.decode_sum(talk.opened())[0])
    assert abs(np.corrcoef(updates[0], updates[1])[0, 1]) < 0.5
    assert np.abs(updates[0] - updates[1]).max() > 0


# Nothing of a round is on disk: a test that knows the secrets and searches for them.


class Hoard:
    """Every secret of the site under test that could be got at, from its memory and from its peers', by what it is."""

    def __init__(self, talk: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
        self.talk = talk
        self.known: dict[str, set[bytes]] = {}
        self.logged = ""
        for name, key in (("MLKEM768PrivateKey", MLKEM768PrivateKey), ("X25519PrivateKey", X25519PrivateKey)):
            monkeypatch.setattr(sealing, name, self._generating(key))

    def _generating(self, key: Any) -> type:
        """The library's keys, whose raw bytes are kept here."""
        hoard = self

        class Kept:
            @staticmethod
            def generate() -> Any:
                made = key.generate()
                hoard.keep("half of a sealing key", made.private_bytes_raw())
                return made

        return Kept

    def keep(self, what: str, value: bytes) -> None:
        assert len(value) >= 32
        self.known.setdefault(what, set()).add(bytes(value))

    def watch(self) -> None:
        """From now on, look just before each vector is masked, when all of it is in memory in plain."""
        session, masked = self.talk.session, self.talk.session.mask

        def mask(vector: IntVector) -> bytes:
            assert isinstance(session._round, Begun)
            self.gather()
            self._keep_keys(session._round)
            self._keep_pieces("the plain vector", vector.tobytes())
            assert self.talk.site._run is not None
            self._keep_pieces("trained weights", flatten(self.talk.site._run.model).tobytes())
            assert_clean(self)
            return masked(vector)

        session.mask = mask  # type: ignore[method-assign]

    def gather(self) -> None:
        """Take note of all that is in the memory of the site and of its peers now."""
        session = self.talk.site._session
        states = [] if session is None else [session._setup, session._round]
        for state in (*states, *self.talk.peers.states.values(), *self.talk.peers.rounds.values()):
            for path, value in secrets_in(state):
                if value is not None and not path.endswith(".key"):
                    self.keep(path.rsplit(".", 1)[-1].split("[", maxsplit=1)[0], value)
            if isinstance(state, Shared):
                for number, own in state.own.items():
                    if not own.escrow.erased:
                        position = state.seat.position
                        key = statements.escrow_key(
                            own.escrow.value, state.ctx, position=position, number=number
                        )
                        self.keep("escrow key", key)

    def _keep_keys(self, begun: Begun) -> None:
        secrets, ctx = begun.secrets, begun.round_ctx
        self.keep("mask key", statements.self_mask_key(secrets.self_seed.value, ctx, position=ME))
        for peer in begun.round_set[1:]:
            seed = secrets.pair_seeds[peer].value
            self.keep("mask key", statements.pair_mask_key(seed, ctx, low=ME, high=peer))

    def _keep_pieces(self, what: str, plain: bytes) -> None:
        """Pieces of 32 bytes in which no entry occurs twice: a piece of zeros is found everywhere."""
        for start in range(0, len(plain) - 31, 256):
            piece = plain[start : start + 32]
            if len({piece[at : at + 4] for at in range(0, 32, 4)}) == 8:
                self.keep(what, piece)

    def found(self) -> list[str]:
        """What stands in any file below the state folder, or in the log, and where."""
        places = {str(path): path.read_bytes() for path in self.talk.file.state.rglob("*") if path.is_file()}
        places["log"] = self.logged.encode()
        return [
            f"{what} in {place}"
            for place, content in places.items()
            for what, values in self.known.items()
            for value in values
            if stands_in(value, content, content.lower())
        ]


def stands_in(value: bytes, content: bytes, lower: bytes) -> bool:
    """Whether 24 bytes from the middle of *value* stand in *content*: raw, hexadecimal, or base64 at any offset."""
    core = value[4:28]
    if core in content or core.hex().encode() in lower:
        return True
    for offset in range(3):
        whole = base64.b64encode(bytes(offset) + core)
        part = whole[4:-4] if offset else whole[:-4]
        if part in content or part.replace(b"+", b"-").replace(b"/", b"_") in content:
            return True
    return False


def assert_clean(hoard: Hoard) -> None:
    assert not hoard.found()


def secret_run(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Conversation, Hoard]:
    study = make_study({"num_colluding = 0": "num_colluding = 0\nrounds_per_batch = 4"}, private=True)
    talk = start(hospital, tmp_path, study)
    return talk, Hoard(talk, monkeypatch)


@pytest.mark.thorough
def test_no_file_below_the_state_folder_ever_holds_a_secret_of_a_round(
    hospital, tmp_path, monkeypatch, caplog
) -> None:
    """Searched after every request, and just before each vector is masked; the log counts as a file."""
    talk, hoard = secret_run(hospital, tmp_path, monkeypatch)
    handle, looks = talk.site.handle, []

    def looked_at(message: bytes) -> bytes:
        hoard.gather()
        reply = handle(message)
        hoard.gather()
        hoard.logged = caplog.text
        assert_clean(hoard)
        looks.append(message)
        return reply

    monkeypatch.setattr(talk.site, "handle", looked_at)
    with caplog.at_level(logging.DEBUG):
        talk.open()
        hoard.watch()
        talk.prepare()
        talk.train(1)
        talk.opened()
        talk.train(2, round_set=(1, 2))  # refused
        talk.train(2, round_set=(0, 1))
        talk.opened()
        with monkeypatch.context() as broken:
            broken.setattr(local_round_module, "train", _fail)
            talk.train(3)  # fails, and is logged with a traceback
        talk.open()
        hoard.watch()
        talk.prepare(first_round=4)
        talk.evaluate()
        talk.opened()
        talk.train(4)  # refused
        talk.close()
    assert "RuntimeError: toy failure" in hoard.logged
    assert len(looks) == 21
    assert {what: len(values) >= 3 for what, values in hoard.known.items()} == dict.fromkeys(
        [
            "contributions",
            "escrow",
            "escrow key",
            "escrow_share",
            "escrow_shares",
            "half of a sealing key",
            "mask key",
            "pair_seeds",
            "self_seed",
            "self_share",
            "self_shares",
            "the plain vector",
            "trained weights",
        ],
        True,
    )


def _fail(*_: object, **__: object) -> None:
    raise RuntimeError("toy failure")


PLANTED = {
    "raw": lambda secret: b"x" + secret,
    "hexadecimal": lambda secret: secret.hex().encode(),
    "upper case": lambda secret: secret.hex().upper().encode(),
    "base64": base64.b64encode,
    "base64 in something longer": lambda secret: base64.b64encode(b"\1" + secret + b"\1"),
    "base64 in something else": lambda secret: base64.urlsafe_b64encode(b"\1\2" + secret),
}


@pytest.mark.thorough
@pytest.mark.parametrize("form", PLANTED)
def test_the_search_finds_a_planted_secret_in_each_form(hospital, tmp_path, monkeypatch, form: str) -> None:
    talk, hoard = secret_run(hospital, tmp_path, monkeypatch)
    talk.open()
    hoard.watch()
    talk.prepare()
    hoard.gather()
    talk.train(1)
    assert_clean(hoard)
    for what, values in sorted(hoard.known.items()):
        planted = talk.file.state / "runs" / "planted.txt"
        planted.write_bytes(b"before" + PLANTED[form](sorted(values)[0]) + b"after")
        assert f"{what} in {planted}" in hoard.found()
        planted.unlink()
    assert_clean(hoard)


def test_the_search_finds_a_secret_that_only_the_ledgers_write_ahead_log_holds(
    hospital, tmp_path, monkeypatch
) -> None:
    talk, hoard = secret_run(hospital, tmp_path, monkeypatch)
    talk.open()
    talk.prepare()
    hoard.gather()
    secret = sorted(hoard.known["self_seed"])[0]
    connection = sqlite3.connect(talk.file.state / "journal.sqlite")
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE planted (value BLOB)")
        connection.execute("INSERT INTO planted VALUES (?)", (secret,))
        connection.commit()
        assert f"self_seed in {talk.file.state / 'journal.sqlite-wal'}" in hoard.found()
    finally:
        connection.close()


@pytest.mark.slow
def test_site_toml_names_every_problem_and_its_paths_count_from_its_folder(hospital, tmp_path) -> None:
    (tmp_path / "site").mkdir()
    path = tmp_path / "site" / "site.toml"
    text = (
        'name = "north"\nstate = "state"\n[images]\nfolder = "images"\n'
        '[labels]\nfile = "labels.csv"\nkey = "PatientID"\n[policy]\nmin_patients = 1\nmax_unusable_share = 0.2\n'
        'max_runs_per_study = 1\nmin_cohort = 2\nmin_threshold = 1\nallowed_tasks = ["binary-classification"]\n'
        'allowed_architectures = ["small-cnn"]\n[consortium]\nroot = "root.pub"\nroster = "roster.toml"\n'
        'identity_key = "identity.key"\n'
    )
    path.write_text(text, encoding="utf-8")
    assert read_site(path).images.folder == tmp_path / "site" / "images"
    enrol(tmp_path / "server", [path], make_study())
    assert open_site(read_site(path)).status()["site"] == "north"
    path.write_text(
        text.replace("0.2", "1.2").replace('"PatientID"', '"Name"').replace("min_cohort = 2\n", ""),
        encoding="utf-8",
    )
    with pytest.raises(ConfigurationError) as caught:
        read_site(path)
    assert "3 problems" in str(caught.value)
    assert "policy.min_cohort is missing" in str(caught.value), "what decides privacy has no default"
    assert "line 7: labels.key = 'Name'" in str(caught.value)
    assert "line 10: policy.max_unusable_share = 1.2" in str(caught.value)
