"""The round loop against sites that answer, refuse, vanish, lie and come back."""

import json
from pathlib import Path

import numpy as np
import pytest
from fake_sites import FakeExchange, refusing
from safetensors import safe_open
from studies import make_study

from server.checkpoint import CheckpointError, read_checkpoint
from server.round_loop import RunContext, RunState, TooFewSitesError, run_rounds
from server.run import checkpoint_path, run_study
from shared_models.architectures import build_model
from shared_models.manifest import Manifest, flatten
from shared_models.messages import Answer, Close, Evaluate, Open, Train, encode
from shared_models.study import Study
from shared_models.vector import VectorLayout, to_bytes

STUDY = make_study()
SHIFTS = {"north": 0.1, "south": 0.3}


def context(tmp_path: Path, exchange: FakeExchange, study: Study = STUDY) -> RunContext:
    return RunContext(
        study=study,
        run_id="run-1",
        exchange=exchange,
        checkpoint=checkpoint_path(tmp_path, "run-1"),
        patience_seconds=0.0,
        start_seconds=0.0,
    )


def shift_of(state: RunState, study: Study = STUDY) -> float:
    moved = state.model.weights - flatten(build_model(study))
    assert np.ptp(moved) < 1e-5
    return float(moved.mean())


def test_each_round_adds_the_mean_of_the_updates(tmp_path) -> None:
    state = run_rounds(context(tmp_path, FakeExchange(STUDY, SHIFTS)))
    assert shift_of(state) == pytest.approx(3 * 0.2, abs=1e-5)
    assert [record.survivors for record in state.progress.rounds] == [("north", "south")] * 3


def test_weights_by_patients_weigh_the_mean(tmp_path) -> None:
    study = make_study({'weights = "equal"': 'weights = "patients"\nmax_patients = 100'})
    exchange = FakeExchange(study, SHIFTS, weights={"north": 90, "south": 10})
    state = run_rounds(context(tmp_path, exchange, study))
    assert shift_of(state, study) == pytest.approx(3 * (0.9 * 0.1 + 0.1 * 0.3), abs=1e-5)


def test_server_momentum_carries_updates_over_and_survives_a_resumption(tmp_path) -> None:
    study = make_study({"num_sites_max = 4": "num_sites_max = 4\nserver_momentum = 0.5"})

    def pull_the_plug(site: str, request: object) -> bytes | None:
        if isinstance(request, Train) and request.round == 3:
            raise KeyboardInterrupt
        return None

    with pytest.raises(KeyboardInterrupt):
        run_rounds(context(tmp_path, FakeExchange(study, SHIFTS, behave=pull_the_plug), study))
    state = run_rounds(context(tmp_path, FakeExchange(study, SHIFTS), study), resume=True)
    assert shift_of(state, study) == pytest.approx(0.2 + 0.3 + 0.35, abs=1e-5)


def test_validation_describes_the_model_that_the_named_round_produced(tmp_path) -> None:
    exchange = FakeExchange(STUDY, SHIFTS)
    state = run_rounds(context(tmp_path, exchange))
    validated = {record.round: record.validation is not None for record in state.progress.rounds}
    assert validated == {1: True, 2: False, 3: True}
    assert state.progress.test is not None
    assert sum(state.progress.test[:-1]) == 4  # two patients at each of two sites


def test_requests_come_in_the_order_open_train_evaluate_close(tmp_path) -> None:
    exchange = FakeExchange(STUDY, SHIFTS)
    run_study(context(tmp_path, exchange), engine="local")
    north = [type(request) for site, request in exchange.seen if site == "north"]
    assert north == [Open, Train, Train, Train, Evaluate, Close]


def test_a_site_that_vanishes_in_a_round_is_left_out_of_it_and_comes_back(tmp_path) -> None:
    shifts = {"north": 0.1, "south": 0.3, "west": 0.5}
    exchange = FakeExchange(
        STUDY, shifts, absent=lambda site, r: site == "west" and isinstance(r, Train) and r.round == 2
    )
    state = run_rounds(context(tmp_path, exchange))
    assert [record.survivors for record in state.progress.rounds] == [
        ("north", "south", "west"),
        ("north", "south"),
        ("north", "south", "west"),
    ]
    assert shift_of(state) == pytest.approx(0.3 + 0.2 + 0.3, abs=1e-5)


def test_a_round_with_too_few_vectors_is_burned_and_changes_nothing(tmp_path) -> None:
    exchange = FakeExchange(
        STUDY, SHIFTS, absent=lambda site, r: site == "south" and isinstance(r, Train) and r.round == 2
    )
    state = run_rounds(context(tmp_path, exchange))
    assert [record.burned for record in state.progress.rounds] == [False, True, False]
    assert shift_of(state) == pytest.approx(2 * 0.2, abs=1e-5)


def test_three_burned_rounds_in_a_row_end_the_run_with_everything_saved(tmp_path) -> None:
    study = make_study({"num_rounds = 3": "num_rounds = 9"})
    exchange = FakeExchange(
        study, SHIFTS, absent=lambda site, r: site == "south" and isinstance(r, Train) and r.round > 2
    )
    with pytest.raises(TooFewSitesError, match="3 rounds in a row got vectors of fewer than min_cohort = 2"):
        run_rounds(context(tmp_path, exchange, study))
    progress, _ = read_checkpoint(checkpoint_path(tmp_path, "run-1"), study_hash=study.hash)
    assert len(progress.rounds) == 5


@pytest.mark.parametrize("stopped_in", [1, 2, 3])
def test_a_resumed_run_ends_with_the_same_weights_as_an_unbroken_one(tmp_path, stopped_in: int) -> None:
    unbroken = run_rounds(context(tmp_path / "unbroken", FakeExchange(STUDY, SHIFTS)))

    def pull_the_plug(site: str, request: object) -> bytes | None:
        if isinstance(request, Train) and request.round == stopped_in:
            raise KeyboardInterrupt
        return None

    broken = context(tmp_path / "broken", FakeExchange(STUDY, SHIFTS, behave=pull_the_plug))
    with pytest.raises(KeyboardInterrupt):
        run_rounds(broken)
    resumed = run_rounds(context(tmp_path / "broken", FakeExchange(STUDY, SHIFTS)), resume=True)
    np.testing.assert_array_equal(resumed.model.weights, unbroken.model.weights)
    assert resumed.progress.test == unbroken.progress.test
    assert [r.validation for r in resumed.progress.rounds] == [r.validation for r in unbroken.progress.rounds]


def test_a_run_cannot_be_resumed_with_a_changed_study(tmp_path) -> None:
    run_rounds(context(tmp_path, FakeExchange(STUDY, SHIFTS)))
    changed = make_study({"learning_rate = 0.1": "learning_rate = 0.2"})
    with pytest.raises(CheckpointError, match="a changed study is a new study"):
        run_rounds(context(tmp_path, FakeExchange(changed, SHIFTS), changed), resume=True)


def test_a_truncated_checkpoint_is_told_and_not_taken_for_a_fresh_start(tmp_path) -> None:
    path = checkpoint_path(tmp_path, "run-1")
    run_rounds(context(tmp_path, FakeExchange(STUDY, SHIFTS)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a usable checkpoint"):
        run_rounds(context(tmp_path, FakeExchange(STUDY, SHIFTS)), resume=True)


@pytest.mark.parametrize("reason", ["policy", "data", "budget", "study-not-approved"])
def test_a_site_that_refuses_to_open_is_not_asked_again_and_the_others_finish(tmp_path, reason: str) -> None:
    shifts = {**SHIFTS, "west": 0.5}
    exchange = FakeExchange(STUDY, shifts, behave=refusing(reason, site="west", kind=Open))
    state = run_rounds(context(tmp_path, exchange))
    assert [type(request) for site, request in exchange.seen if site == "west"] == [Open]
    assert dict(state.final_refusals) == {"west": reason}
    assert shift_of(state) == pytest.approx(3 * 0.2, abs=1e-5)


def test_a_site_that_restarted_is_asked_to_open_again(tmp_path) -> None:
    shifts = {**SHIFTS, "west": 0.5}
    refusals = iter([True])

    def restarted(site: str, request: object) -> bytes | None:
        if site == "west" and isinstance(request, Train) and request.round == 2 and next(refusals, False):
            return refusing("not-open", site="west", kind=Train)(site, request)
        return None

    exchange = FakeExchange(STUDY, shifts, behave=restarted)
    state = run_rounds(context(tmp_path, exchange))
    west = [type(request) for site, request in exchange.seen if site == "west"]
    assert west == [Open, Train, Train, Open, Train, Evaluate]
    assert state.progress.rounds[1].refusals == {"west": "not-open"}


def test_too_few_sites_at_the_start_are_told_with_their_reasons(tmp_path) -> None:
    exchange = FakeExchange(STUDY, SHIFTS, behave=refusing("data", site="south", kind=Open))
    with pytest.raises(TooFewSitesError, match="south: data"):
        run_rounds(context(tmp_path, exchange))


def test_garbage_from_one_site_is_left_out_and_the_round_goes_on(tmp_path) -> None:
    shifts = {**SHIFTS, "west": 0.5}

    def garbage(site: str, request: object) -> bytes | None:
        return b"\x00garbage" if site == "west" and isinstance(request, Train) else None

    state = run_rounds(context(tmp_path, FakeExchange(STUDY, shifts, behave=garbage)))
    assert all(record.survivors == ("north", "south") for record in state.progress.rounds)


def test_a_reply_to_another_run_or_round_is_left_out(tmp_path) -> None:
    shifts = {**SHIFTS, "west": 0.5}
    for header in (Answer(run_id="another-run", round=2), Answer(run_id="run-1", round=77)):

        def foreign(site: str, request: object, header: Answer = header) -> bytes | None:
            if site != "west" or not isinstance(request, Train):
                return None
            size = Manifest.of(build_model(STUDY)).num_weights
            layout = VectorLayout.of_study(STUDY.aggregation, num_weights=size, num_statistics=0)
            update = np.full(size, 0.5)
            return encode(
                header, to_bytes(layout.encode(update=update, weight=1, statistics=np.zeros(0, np.int64)))
            )

        state = run_rounds(context(tmp_path / header.run_id, FakeExchange(STUDY, shifts, behave=foreign)))
        assert all("west" not in record.survivors for record in state.progress.rounds)


def test_nobody_is_asked_for_a_round_that_cannot_succeed(tmp_path) -> None:
    """Each site that is asked has to count the round as spent."""
    exchange = FakeExchange(STUDY, SHIFTS)
    seen = exchange.sites
    exchange.sites = lambda: seen() if sum(isinstance(r, Train) for _, r in exchange.seen) < 2 else ("north",)
    with pytest.raises(TooFewSitesError, match="the next step can ask fewer than min_cohort = 2"):
        run_rounds(context(tmp_path, exchange))
    progress, _ = read_checkpoint(checkpoint_path(tmp_path, "run-1"), study_hash=STUDY.hash)
    assert [record.burned for record in progress.rounds] == [False]
    assert max(request.round for _, request in exchange.seen if isinstance(request, Train)) == 1


def test_a_vector_that_makes_the_weights_negative_burns_the_round_only(tmp_path) -> None:
    study = make_study({'weights = "equal"': 'weights = "patients"\nmax_patients = 100'})
    size = Manifest.of(build_model(study)).num_weights
    hostile = np.zeros(size + 1, dtype=np.uint32)
    hostile[size] = 2**32 - 500

    def lie(site: str, request: object) -> bytes | None:
        if site == "south" and isinstance(request, Train) and request.round == 1:
            return encode(Answer(run_id="run-1", round=1), to_bytes(hostile))
        return None

    state = run_rounds(context(tmp_path, FakeExchange(study, SHIFTS, behave=lie), study))
    assert [record.burned for record in state.progress.rounds] == [True, False, False]


def test_the_model_is_kept_when_the_final_test_cannot_be_made(tmp_path) -> None:
    exchange = FakeExchange(STUDY, SHIFTS, absent=lambda site, r: isinstance(r, Evaluate))
    with pytest.raises(TooFewSitesError, match="the final test"):
        run_study(context(tmp_path, exchange), engine="local")
    folder = checkpoint_path(tmp_path, "run-1").parent
    assert (folder / "model.safetensors").exists()
    assert not (folder / "result.json").exists()


def test_a_final_test_whose_replies_are_lost_is_not_repeated_and_the_run_ends(tmp_path) -> None:
    def lost(site: str, request: object) -> bytes | None:
        return refusing("round-already-attempted", site=site, kind=Evaluate)(site, request)

    result = run_study(context(tmp_path, FakeExchange(STUDY, SHIFTS, behave=lost)), engine="local")
    assert result.test == {}
    assert (checkpoint_path(tmp_path, "run-1").parent / "result.json").exists()


def test_a_run_writes_result_and_model_with_its_card(tmp_path) -> None:
    exchange = FakeExchange(STUDY, SHIFTS)
    result = run_study(context(tmp_path, exchange), engine="local")
    folder = checkpoint_path(tmp_path, "run-1").parent
    written = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert written["schema"] == 1
    assert written["study"]["hash"] == STUDY.hash
    assert written["test"]["auroc"] == 1.0
    assert [site["name"] for site in written["sites"]] == ["north", "south"]
    assert result.rounds[0].metrics is not None
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        card = file.metadata()
        assert card["study_hash"] == STUDY.hash
        assert "Not a medical device" in card["intended_use"]
        assert sum(file.get_tensor(name).size for name in file.keys()) == len(flatten(build_model(STUDY)))  # noqa: SIM118
    assert not list(folder.glob("*.partial"))


def test_the_servers_result_holds_no_single_sites_number(tmp_path) -> None:
    run_study(context(tmp_path, FakeExchange(STUDY, SHIFTS)), engine="deployed")
    written = json.loads(
        (checkpoint_path(tmp_path, "run-1").parent / "result.json").read_text(encoding="utf-8")
    )
    for site in written["sites"]:
        told = {key for key, value in site.items() if value is not None}
        assert told <= {"name", "epsilon", "rounds_asked", "refused"}
