"""The round loop against sites that answer, refuse, vanish, lie and come back."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_sites import FakeExchange, refusing
from studies import make_study

from server import cohort
from server.checkpoint import CheckpointError, read_checkpoint
from server.round_loop import run_rounds
from server.run import checkpoint_path, run_study
from server.run_state import RunContext, RunState, TooFewSitesError
from shared_models.architectures import build_model
from shared_models.manifest import flatten
from shared_models.messages import (
    Advertise,
    Answer,
    Close,
    Confirm,
    Escrow,
    Evaluate,
    Open,
    Request,
    Share,
    Train,
    Unmask,
    decode_reply,
    encode,
)
from shared_models.model_file import read_model
from shared_models.study import Study
from shared_models.vector import IntVector

STUDY = make_study()
SHIFTS = {"north": 0.1, "south": 0.3}
ROUND_BY_ROUND = {"num_sites_max = 3": "num_sites_max = 3\nrounds_per_batch = 1"}
"""Every round has its own setup."""


def context(
    tmp_path: Path, exchange: FakeExchange, study: Study = STUDY, *, patience_seconds: float = 0.0
) -> RunContext:
    return RunContext(
        study=study,
        run_id="run-1",
        exchange=exchange,
        federation=exchange.federation,
        checkpoint=checkpoint_path(tmp_path, "run-1"),
        patience_seconds=patience_seconds,
        start_seconds=0.0,
    )


def vanishing(site: str, kind: type[Request], *, number: int) -> Callable[[str, Request], bool]:
    """True for the *number*-th request of this kind to *site*, and for no other."""
    counted: list[Request] = []

    def gone(name: str, request: Request) -> bool:
        if name == site and isinstance(request, kind):
            counted.append(request)
            return len(counted) == number
        return False

    return gone


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
    study = make_study(
        {"num_sites_max = 3": "num_sites_max = 3\nserver_momentum = 0.5\nrounds_per_batch = 2"}
    )

    def pull_the_plug(site: str, request: object) -> bytes | None:
        if isinstance(request, Advertise) and any(isinstance(r, Train) for _, r in exchange.seen):
            raise KeyboardInterrupt
        return None

    exchange = FakeExchange(study, SHIFTS, behave=pull_the_plug)
    with pytest.raises(KeyboardInterrupt):
        run_rounds(context(tmp_path, exchange, study))
    state = run_rounds(context(tmp_path, FakeExchange(study, SHIFTS), study), resume=True)
    assert [record.burned for record in state.progress.rounds] == [None, None, None]
    assert shift_of(state, study) == pytest.approx(0.2 + 0.3 + 0.35, abs=1e-5)


def test_validation_describes_the_model_that_the_named_round_produced(tmp_path) -> None:
    exchange = FakeExchange(STUDY, SHIFTS)
    state = run_rounds(context(tmp_path, exchange))
    validated = {record.round: record.validation is not None for record in state.progress.rounds}
    assert validated == {1: True, 2: False, 3: True}
    assert state.progress.test is not None
    assert sum(state.progress.test[:-1]) == 4  # two patients at each of two sites


def test_requests_come_in_the_order_of_the_protocol(tmp_path) -> None:
    exchange = FakeExchange(STUDY, SHIFTS)
    run_study(context(tmp_path, exchange), engine="local")
    north = [type(request) for site, request in exchange.seen if site == "north"]
    rounds = [Train, Confirm, Unmask] * 3
    assert north == [Open, Advertise, Share, Escrow, *rounds, Evaluate, Confirm, Unmask, Close]


def test_all_sites_get_the_same_round_set_and_never_twice_the_same_round(tmp_path) -> None:
    exchange = FakeExchange(STUDY, SHIFTS)
    run_study(context(tmp_path, exchange), engine="local")
    asked = [request for site, request in exchange.seen if isinstance(request, Train | Evaluate)]
    assert [(request.round, request.round_set) for request in asked] == [
        (number, (0, 1)) for number in (1, 1, 2, 2, 3, 3, 4, 4)
    ]


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
    assert [record.burned for record in state.progress.rounds] == [
        None,
        "1 of 2 sites sent a vector; the study wants 2",
        None,
    ]
    assert state.progress.rounds[1].asked == ("north", "south"), "both have to count it as spent"
    assert state.progress.rounds[1].survivors == ("north",)
    assert state.progress.rounds[1].refusals == {"south": "no-answer"}
    assert shift_of(state) == pytest.approx(2 * 0.2, abs=1e-5)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_more_burned_rounds_in_a_row_than_the_study_allows_stop_the_run_with_everything_saved(
    tmp_path, most: int
) -> None:
    study = make_study(
        {
            "num_rounds = 3": "num_rounds = 9",
            "num_sites_max = 3": f"num_sites_max = 3\nmax_burned_rounds = {most}",
        }
    )
    exchange = FakeExchange(
        study, SHIFTS, absent=lambda site, r: site == "south" and isinstance(r, Train) and r.round > 2
    )
    told = (
        rf"{most + 1} rounds in a row were burned \(max_burned_rounds = {most}\).*1 of 2 sites sent a vector"
    )
    with pytest.raises(TooFewSitesError, match=told):
        run_rounds(context(tmp_path, exchange, study))
    progress, _ = read_checkpoint(checkpoint_path(tmp_path, "run-1"), study_hash=study.hash)
    assert [record.burned is None for record in progress.rounds] == [True] * 2 + [False] * (most + 1)

    resumed = run_rounds(context(tmp_path, FakeExchange(study, SHIFTS), study), resume=True)
    assert len(resumed.progress.rounds) == 9
    assert shift_of(resumed, study) == pytest.approx((9 - most - 1) * 0.2, abs=1e-5)


def test_burned_rounds_that_are_not_in_a_row_do_not_stop_the_run(tmp_path) -> None:
    study = make_study(
        {"num_rounds = 3": "num_rounds = 8", "num_sites_max = 3": "num_sites_max = 3\nmax_burned_rounds = 1"}
    )
    exchange = FakeExchange(
        study, SHIFTS, absent=lambda site, r: site == "south" and isinstance(r, Train) and r.round % 3 == 0
    )
    state = run_rounds(context(tmp_path, exchange, study))
    assert [record.round for record in state.progress.rounds if record.burned] == [3, 6]


def test_a_resumed_run_of_sites_that_forgot_everything_goes_on_with_the_next_round(tmp_path) -> None:
    """The round that was under way is burned: it may have been spent. All others are as they would have been."""
    plugged = vanishing("north", Train, number=2)

    def pull_the_plug(site: str, request: Request) -> bytes | None:
        if plugged(site, request):
            raise KeyboardInterrupt
        return None

    exchange = FakeExchange(STUDY, SHIFTS, behave=pull_the_plug)
    with pytest.raises(KeyboardInterrupt):
        run_rounds(context(tmp_path, exchange))
    for site in SHIFTS:
        exchange.restart(site)
    resumed = run_rounds(context(tmp_path, exchange), resume=True)
    assert [record.burned for record in resumed.progress.rounds] == [
        None,
        "0 of 2 sites sent a vector; the study wants 2",
        None,
    ]
    assert resumed.progress.rounds[1].refusals == {"north": "no-batch", "south": "no-batch"}
    assert [record.round for record in resumed.progress.rounds] == [1, 2, 3]
    assert shift_of(resumed) == pytest.approx(2 * 0.2, abs=1e-5)
    assert resumed.progress.test is not None


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
    assert dict(state.attendance.refused) == {"west": reason}
    assert shift_of(state) == pytest.approx(3 * 0.2, abs=1e-5)


def test_a_site_that_restarted_is_asked_to_open_again(tmp_path) -> None:
    shifts = {**SHIFTS, "west": 0.5}

    def restarts(site: str, request: object) -> bool:
        if site == "west" and isinstance(request, Train) and request.round == 2 and not restarted:
            restarted.append(site)
            exchange.restart(site)
        return False

    restarted: list[str] = []
    exchange = FakeExchange(STUDY, shifts, absent=restarts)
    state = run_rounds(context(tmp_path, exchange))
    west = [type(request) for site, request in exchange.seen if site == "west"]
    setup, rest = [Advertise, Share, Escrow], [Confirm, Unmask]
    assert west == [Open, *setup, Train, *rest, Train, Open, *setup, Train, *rest, Evaluate, *rest]
    assert state.progress.rounds[1].refusals == {"west": "not-open"}
    assert [record.survivors for record in state.progress.rounds] == [
        ("north", "south", "west"),
        ("north", "south"),
        ("north", "south", "west"),
    ]
    assert shift_of(state) == pytest.approx(0.3 + 0.2 + 0.3, abs=1e-5)


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


@pytest.mark.parametrize(
    "header",
    [
        Answer(to="train", run_id="another-run", round=2),
        Answer(to="train", run_id="run-1", round=77),
        Answer(to="confirm", run_id="run-1", round=2),
    ],
    ids=["run", "round", "kind"],
)
def test_a_reply_to_another_run_or_round_or_request_is_left_out(tmp_path, header: Answer) -> None:
    """Its payload is the vector that was asked for; only the header is about something else."""
    shifts = {**SHIFTS, "west": 0.5}

    class Mislabelled(FakeExchange):
        def _answer(self, site: str, request: Request, payload: bytes, message: bytes) -> bytes:
            reply = super()._answer(site, request, payload, message)
            if site != "west" or not isinstance(request, Train) or request.round != 2:
                return reply
            return encode(header, decode_reply(reply)[1])

    state = run_rounds(context(tmp_path, Mislabelled(STUDY, shifts)))
    assert [record.refusals for record in state.progress.rounds] == [{}, {"west": "bad-reply"}, {}]
    assert state.progress.rounds[1].survivors == ("north", "south")


def test_nobody_is_asked_for_a_round_that_cannot_succeed(tmp_path) -> None:
    """Each site that is asked has to count the round as spent."""
    exchange = FakeExchange(STUDY, SHIFTS)
    seen = exchange.sites
    exchange.sites = lambda: seen() if sum(isinstance(r, Train) for _, r in exchange.seen) < 2 else ("north",)
    with pytest.raises(TooFewSitesError, match="round 2 could ask fewer than 2 sites; connected now: north"):
        run_rounds(context(tmp_path, exchange))
    progress, _ = read_checkpoint(checkpoint_path(tmp_path, "run-1"), study_hash=STUDY.hash)
    assert [record.burned for record in progress.rounds] == [None]
    assert max(request.round for _, request in exchange.seen if isinstance(request, Train)) == 1


def test_a_vector_that_makes_the_weights_negative_burns_the_round_only(tmp_path) -> None:
    study = make_study({'weights = "equal"': 'weights = "patients"\nmax_patients = 100'})

    class Hostile(FakeExchange):
        def vector(self, site: str, request: Train | Evaluate, num_weights: int) -> IntVector:
            vector = super().vector(site, request, num_weights)
            if site == "south" and isinstance(request, Train) and request.round == 1:
                vector[:] = 0
                vector[num_weights] = 2**32 - 500
            return vector

    state = run_rounds(context(tmp_path, Hostile(study, SHIFTS), study))
    first, *others = [record.burned for record in state.progress.rounds]
    assert first == "the sum makes no sense: the total weight is -499; every site's weight is at least 1"
    assert others == [None, None]


def test_a_final_test_without_a_sum_is_not_repeated_and_the_run_ends_with_its_files(tmp_path) -> None:
    exchange = FakeExchange(STUDY, SHIFTS, absent=lambda site, r: isinstance(r, Evaluate))
    result = run_study(context(tmp_path, exchange), engine="local")
    assert result.test == {}
    assert result.test_burned == "0 of 2 sites sent a vector; the study wants 2"
    folder = checkpoint_path(tmp_path, "run-1").parent
    assert (folder / "model.safetensors").exists()
    written = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert written["test"] == {}
    assert written["test_burned"] == result.test_burned
    assert sum(isinstance(request, Evaluate) for _, request in exchange.seen) == 2

    again = FakeExchange(STUDY, SHIFTS)
    resumed = run_study(context(tmp_path, again), engine="local", resume=True)
    assert resumed.test_burned == result.test_burned
    assert not any(isinstance(request, Evaluate) for _, request in again.seen)


def test_a_final_test_that_lost_a_site_has_the_figures_of_the_others(tmp_path) -> None:
    exchange = FakeExchange(
        STUDY, {**SHIFTS, "west": 0.5}, absent=lambda site, r: site == "west" and isinstance(r, Evaluate)
    )
    state = run_rounds(context(tmp_path, exchange))
    assert state.progress.tested == ("north", "south")
    assert state.progress.test is not None
    assert sum(state.progress.test[:-1]) == 4


def test_the_model_is_kept_when_no_site_is_left_for_the_final_test(tmp_path) -> None:
    exchange = FakeExchange(make_study(ROUND_BY_ROUND), SHIFTS)
    everybody = exchange.sites
    exchange.sites = lambda: everybody() if sum(isinstance(r, Unmask) for _, r in exchange.seen) < 6 else ()
    with pytest.raises(TooFewSitesError, match="connected now: none"):
        run_study(context(tmp_path, exchange, exchange.study), engine="local")
    folder = checkpoint_path(tmp_path, "run-1").parent
    assert (folder / "model.safetensors").exists()
    assert not (folder / "result.json").exists()
    result = run_study(
        context(tmp_path, FakeExchange(exchange.study, SHIFTS), exchange.study), engine="local", resume=True
    )
    assert result.test["auroc"] == 1.0


def test_a_run_writes_result_and_model_with_its_card(tmp_path) -> None:
    exchange = FakeExchange(STUDY, SHIFTS)
    result = run_study(context(tmp_path, exchange), engine="local")
    folder = checkpoint_path(tmp_path, "run-1").parent
    written = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert written["schema"] == 3
    assert written["study"]["hash"] == STUDY.hash
    assert written["test"]["auroc"] == 1.0
    assert [site["name"] for site in written["sites"]] == ["north", "south"]
    assert result.rounds[0].metrics is not None
    model = read_model(folder / "model.safetensors")
    assert model.card.study_hash == STUDY.hash
    assert "Not a medical device" in model.card.intended_use
    assert len(flatten(model.model.requires_grad_(True))) == len(flatten(build_model(STUDY)))
    assert written["model_digest"] == model.digest
    assert not list(folder.glob("*.partial"))


def test_the_servers_result_holds_no_single_sites_number(tmp_path) -> None:
    run_study(context(tmp_path, FakeExchange(STUDY, SHIFTS)), engine="deployed")
    written = json.loads(
        (checkpoint_path(tmp_path, "run-1").parent / "result.json").read_text(encoding="utf-8")
    )
    for site in written["sites"]:
        told = {key for key, value in site.items() if value is not None}
        assert told <= {"name", "epsilon", "rounds_asked", "refused"}


# Who vanishes when, and comes back. West is the third of three sites; two are enough.


@pytest.mark.parametrize("lost", ["request", "reply"])
@pytest.mark.parametrize("kind", [Advertise, Share, Escrow, Train, Confirm, Unmask])
def test_a_site_that_vanishes_at_any_exchange_is_missed_by_nobody_and_is_back_at_the_next_round(
    tmp_path, kind: type[Request], lost: str
) -> None:
    """Before the request reaches it, or after it did as asked and before its reply arrives."""
    study = make_study(ROUND_BY_ROUND)
    gone = vanishing("west", kind, number=2)
    exchange = FakeExchange(
        study, {**SHIFTS, "west": 0.5}, **{"absent" if lost == "request" else "mute": gone}
    )
    state = run_rounds(context(tmp_path, exchange, study))
    in_the_sum = kind in (Confirm, Unmask)
    everybody = ("north", "south", "west")
    assert [record.burned for record in state.progress.rounds] == [None] * 3
    assert [record.survivors for record in state.progress.rounds] == [
        everybody,
        everybody if in_the_sum else ("north", "south"),
        everybody,
    ]
    assert shift_of(state, study) == pytest.approx(0.3 + (0.3 if in_the_sum else 0.2) + 0.3, abs=1e-5)
    assert state.progress.tested == everybody


@pytest.mark.parametrize("lost", ["request", "reply"])
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Train, "1 of 3 sites sent a vector; the study wants 2"),
        (Confirm, "1 of 3 survivors confirmed; the threshold is 2"),
        (Unmask, "1 sites gave shares; the threshold is 2"),
    ],
)
def test_a_round_that_loses_more_sites_than_it_can_is_burned_with_its_reason_and_all_are_back(
    tmp_path, kind: type[Request], told: str, lost: str
) -> None:
    south, west = (vanishing(site, kind, number=2) for site in ("south", "west"))
    exchange = FakeExchange(
        STUDY,
        {**SHIFTS, "west": 0.5},
        **{"absent" if lost == "request" else "mute": lambda site, r: south(site, r) or west(site, r)},
    )
    state = run_rounds(context(tmp_path, exchange))
    assert [record.burned for record in state.progress.rounds] == [None, told, None]
    assert state.progress.rounds[2].survivors == ("north", "south", "west")
    assert shift_of(state) == pytest.approx(2 * 0.3, abs=1e-5)


@pytest.mark.parametrize("lost", ["request", "reply"])
@pytest.mark.parametrize("kind", [Advertise, Share, Escrow])
def test_a_setup_that_loses_too_many_sites_costs_no_round_and_is_made_again(
    tmp_path, monkeypatch, kind: type[Request], lost: str
) -> None:
    monkeypatch.setattr(cohort, "AGAIN_SECONDS", 0.01)
    gone = vanishing("south", kind, number=1)
    exchange = FakeExchange(STUDY, SHIFTS, **{"absent" if lost == "request" else "mute": gone})
    state = run_rounds(context(tmp_path, exchange, patience_seconds=30.0))
    assert [record.burned for record in state.progress.rounds] == [None] * 3
    assert state.attempt.batch == 2, "the first number is used up"
    assert shift_of(state) == pytest.approx(3 * 0.2, abs=1e-5)


def test_a_setup_that_goes_on_failing_ends_the_run_before_anybody_is_asked_to_train(tmp_path) -> None:
    exchange = FakeExchange(STUDY, SHIFTS, absent=lambda site, r: site == "south" and isinstance(r, Share))
    with pytest.raises(
        TooFewSitesError, match=r"the secrets of round 1 could not be prepared: 1 of 2 sites dealt"
    ):
        run_rounds(context(tmp_path, exchange))
    assert not any(isinstance(request, Train) for _, request in exchange.seen)
    resumed = run_rounds(context(tmp_path, FakeExchange(STUDY, SHIFTS)), resume=True)
    assert [record.burned for record in resumed.progress.rounds] == [None] * 3


@pytest.mark.slow
@pytest.mark.parametrize("first", [Train, Confirm, Unmask])
@pytest.mark.parametrize("second", [Advertise, Share, Escrow, Train, Confirm, Unmask])
def test_of_five_sites_any_two_may_vanish_at_any_exchanges(
    tmp_path, first: type[Request], second: type[Request]
) -> None:
    """threshold = min_cohort = 3: five minus three may vanish before upload, and as many in all."""
    study = make_study(
        {
            **ROUND_BY_ROUND,
            "num_sites_max = 3": "num_sites_max = 5\nrounds_per_batch = 1",
            "min_cohort = 2": "min_cohort = 3",
            "threshold = 2": "threshold = 3",
        }
    )
    shifts = {"east": 0.05, "north": 0.1, "south": 0.15, "up": 0.2, "west": 0.25}
    for how in ("absent", "mute"):
        both = vanishing("west", first, number=2), vanishing("east", second, number=2)
        exchange = FakeExchange(
            study, shifts, **{how: lambda site, r, both=both: any(gone(site, r) for gone in both)}
        )
        state = run_rounds(context(tmp_path / how, exchange, study))
        assert [record.burned for record in state.progress.rounds] == [None] * 3
        left = set(shifts)
        left -= {"west"} if first is Train else set()
        left -= set() if second in (Confirm, Unmask) else {"east"}
        assert set(state.progress.rounds[1].survivors) == left
        assert state.progress.rounds[2].survivors == tuple(sorted(shifts))
        mean = sum(shifts[site] for site in left) / len(left)
        assert shift_of(state, study) == pytest.approx(2 * 0.15 + mean, abs=1e-5)


def test_a_site_that_does_not_answer_at_the_start_is_waited_for_once(tmp_path) -> None:
    """It costs the opening's time once, not again because patience ended meanwhile."""
    exchange = FakeExchange(
        STUDY, {**SHIFTS, "west": 0.5}, absent=lambda site, r: site == "west" and isinstance(r, Open)
    )
    state = run_rounds(context(tmp_path, exchange))
    first = next(at for at, (_, request) in enumerate(exchange.seen) if isinstance(request, Advertise))
    assert [site for site, _ in exchange.seen[:first]].count("west") == 1
    assert all("west" not in record.survivors for record in state.progress.rounds)


def test_a_run_that_can_never_have_enough_sites_ends_at_once(tmp_path) -> None:
    """All but one refused for good: waiting longer would not help."""
    exchange = FakeExchange(STUDY, SHIFTS, behave=refusing("roster-differs", site="south", kind=Advertise))
    patient = replace(context(tmp_path, exchange), patience_seconds=3600.0)
    with pytest.raises(TooFewSitesError, match="south: roster-differs"):
        run_rounds(patient)


@pytest.mark.slow
def test_a_killed_site_is_back_in_the_round_after_the_one_in_which_the_server_learns_of_it(tmp_path) -> None:
    """Silent in round 2, `not-open` in round 3: it was started again, and is not left alone for that."""
    study = make_study({"num_rounds = 3": "num_rounds = 6"})
    exchange = FakeExchange(study, {**SHIFTS, "west": 0.5})

    def killed(site: str, request: Request) -> bool:
        if site == "west" and isinstance(request, Train) and request.round == 2:
            exchange.restart(site)
            return True
        return False

    exchange.absent = killed
    state = run_rounds(context(tmp_path, exchange, study))
    assert ["west" in record.survivors for record in state.progress.rounds] == [
        True,
        False,
        False,
        True,
        True,
        True,
    ]
