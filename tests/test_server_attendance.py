"""Sites that do not answer are left alone for a while, come back, and are never left out where they are needed."""

from pathlib import Path

import pytest
from fake_sites import FakeExchange, refusing
from hypothesis import given
from hypothesis import strategies as st
from studies import make_study

from server import cohort
from server.attendance import LONGEST_REST, Attendance
from server.round_loop import run_rounds
from server.run import checkpoint_path
from server.run_state import RunContext, RunState
from shared_models.messages import Advertise, Evaluate, Open, Request, Train
from shared_models.study import Study

SHIFTS = {"north": 0.1, "south": 0.3, "west": 0.5}


def long_study(num_rounds: int) -> Study:
    return make_study(
        {
            "num_rounds = 3": f"num_rounds = {num_rounds}",
            "num_sites_max = 3": "num_sites_max = 3\nrounds_per_batch = 100\nmax_burned_rounds = 5",
        }
    )


def run(
    tmp_path: Path, exchange: FakeExchange, *, patience_seconds: float = 0.0, start_seconds: float = 30.0
) -> RunState:
    return run_rounds(
        RunContext(
            study=exchange.study,
            run_id="run-1",
            exchange=exchange,
            federation=exchange.federation,
            checkpoint=checkpoint_path(tmp_path, "run-1"),
            patience_seconds=patience_seconds,
            start_seconds=start_seconds,
        )
    )


def asked(exchange: FakeExchange, site: str, kind: type[Request] = Train) -> list[int]:
    return [request.round for name, request in exchange.seen if name == site and isinstance(request, kind)]  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_site_that_stays_silent_is_asked_less_and_less_often(tmp_path) -> None:
    """Each time it costs the others the deadline. From the second in a row on it rests: one round, three, seven."""
    exchange = FakeExchange(
        long_study(18), SHIFTS, absent=lambda site, r: site == "west" and isinstance(r, Train)
    )
    state = run(tmp_path, exchange)
    assert asked(exchange, "west") == [1, 2, 4, 8, 16]
    assert asked(exchange, "north") == list(range(1, 19))
    assert all(record.burned is None for record in state.progress.rounds)


def test_a_site_that_answers_again_is_asked_in_every_round_again(tmp_path) -> None:
    exchange = FakeExchange(
        long_study(9),
        SHIFTS,
        absent=lambda site, r: site == "west" and isinstance(r, Train) and r.round in (1, 2, 6),
    )
    state = run(tmp_path, exchange)
    assert asked(exchange, "west") == [1, 2, 4, 5, 6, 7, 8, 9]
    back = [record.round for record in state.progress.rounds if "west" in record.survivors]
    assert back == [4, 5, 7, 8, 9]


def test_sites_that_rest_are_asked_where_there_are_too_few_without_them(tmp_path) -> None:
    """Two sites, both needed: South rests after two silent rounds, and no round is begun without it."""
    shifts = {"north": 0.1, "south": 0.3}
    exchange = FakeExchange(
        long_study(5),
        shifts,
        absent=lambda site, r: site == "south" and isinstance(r, Train) and r.round <= 2,
    )
    state = run(tmp_path, exchange)
    assert [record.burned is None for record in state.progress.rounds] == [False, False, True, True, True]
    assert asked(exchange, "south") == [1, 2, 3, 4, 5]


def test_a_site_that_is_silent_in_setups_does_not_hold_up_every_round(tmp_path) -> None:
    exchange = FakeExchange(
        long_study(9), SHIFTS, absent=lambda site, r: site == "west" and isinstance(r, Advertise)
    )
    state = run(tmp_path, exchange)
    assert all(record.survivors == ("north", "south") for record in state.progress.rounds)
    setups = sum(site == "west" and isinstance(r, Advertise) for site, r in exchange.seen)
    assert setups == 4, "for rounds 1, 2, 4 and 8"


@pytest.mark.slow
def test_a_site_that_fails_in_every_round_opens_the_run_less_and_less_often(tmp_path) -> None:
    exchange = FakeExchange(long_study(9), SHIFTS, behave=refusing("failed", site="west", kind=Train))
    state = run(tmp_path, exchange)
    assert asked(exchange, "west") == [1, 2, 4, 8]
    assert all(record.burned is None for record in state.progress.rounds)


def test_a_site_that_missed_the_last_round_is_in_the_final_test(tmp_path) -> None:
    exchange = FakeExchange(
        make_study(), SHIFTS, absent=lambda site, r: site == "west" and isinstance(r, Train) and r.round == 3
    )
    state = run(tmp_path, exchange)
    assert asked(exchange, "west", Evaluate) == [4]
    assert state.progress.tested == tuple(SHIFTS)


def test_a_site_that_opened_the_run_after_some_failures_takes_part_from_the_first_round_on(
    tmp_path, monkeypatch
) -> None:
    """A hospital whose machine was busy while the others waited for it has missed nothing."""
    monkeypatch.setattr(cohort, "AGAIN_SECONDS", 0.01)
    failures = iter(range(6))

    def behave(site: str, request: Request) -> bytes | None:
        if site == "west" and isinstance(request, Open) and next(failures, None) is not None:
            return refusing("failed", site="west", kind=Open)(site, request)
        return None

    exchange = FakeExchange(make_study(), SHIFTS, behave=behave)
    state = run(tmp_path, exchange, patience_seconds=30.0)
    assert [record.survivors for record in state.progress.rounds] == [tuple(SHIFTS)] * 3


def test_a_site_that_is_late_for_the_opening_joins_at_a_later_round(tmp_path) -> None:
    exchange = FakeExchange(make_study(), SHIFTS)
    everybody, seen = exchange.sites, exchange.seen
    exchange.sites = lambda: everybody() if any(isinstance(r, Train) for _, r in seen) else ("north", "south")
    state = run(tmp_path, exchange)
    assert asked(exchange, "west") == [2, 3]
    assert state.progress.tested == tuple(SHIFTS)


@pytest.mark.parametrize("reason", ["budget", "study-not-approved"])
def test_a_site_that_refuses_a_round_for_good_is_asked_no_more(tmp_path, reason: str) -> None:
    exchange = FakeExchange(long_study(5), SHIFTS, behave=refusing(reason, site="west", kind=Train))
    state = run(tmp_path, exchange)
    assert asked(exchange, "west") == [1]
    assert dict(state.attendance.refused) == {"west": reason}


# The laws, without a run.


def test_the_rest_has_a_longest() -> None:
    attendance, number, rests = Attendance(), 1, []
    for _ in range(9):
        attendance = attendance.with_failed(["west"], number=number)
        rests.append(attendance.rests_until["west"] - number - 1)
        number = attendance.rests_until["west"]
    assert rests == [0, 1, 3, 7, 15, 15, 15, 15, 15]
    assert LONGEST_REST == 16


events = st.lists(
    st.tuples(
        st.sampled_from(["failed", "answered", "opened", "lost", "refused"]), st.sampled_from(sorted(SHIFTS))
    ),
    max_size=30,
)


@pytest.mark.slow
@given(events)
def test_whatever_happened_a_site_that_answers_is_awake_at_once_and_one_that_refused_never(
    happened: list[tuple[str, str]],
) -> None:
    attendance, refused = Attendance(), set()
    for number, (what, site) in enumerate(happened, start=1):
        before = attendance
        match what:
            case "failed":
                attendance = attendance.with_failed([site], number=number)
            case "answered":
                attendance = attendance.with_answered([site])
            case "opened":
                attendance = attendance.with_opened(site)
            case "lost":
                attendance = attendance.with_lost([site])
            case _:
                attendance = attendance.with_refused({site: "policy"})
                refused.add(site)
        others = set(SHIFTS) - {site}
        assert set(attendance.awake(others, number=number)) == set(before.awake(others, number=number))
    number = len(happened) + 1
    assert attendance.awake(sorted(SHIFTS, reverse=True)) == sorted(set(SHIFTS) - refused)
    assert set(attendance.awake(SHIFTS, number=number + LONGEST_REST)) == set(SHIFTS) - refused
    assert set(attendance.with_answered(SHIFTS).awake(SHIFTS, number=number)) == set(SHIFTS) - refused
