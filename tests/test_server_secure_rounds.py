"""Setups and masked rounds over an exchange: who gets a new batch when, and what becomes of sites that misbehave."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fake_sites import FakeExchange, refusing
from studies import make_study

from privacy.secure_aggregation import statements
from privacy.secure_aggregation.context import HASH_BYTES, sign
from privacy.secure_aggregation.messages import AdvertiseRequest, EscrowReply, ShareReply
from privacy.secure_aggregation.site_setup import Shared
from server.round_loop import run_rounds
from server.run import checkpoint_path, run_study
from server.run_state import RunContext, RunState
from shared_models.messages import (
    Advertise,
    Answer,
    Confirm,
    Escrow,
    Evaluate,
    Request,
    Share,
    Train,
    Unmask,
    decode_reply,
)

STUDY = make_study()
SHIFTS = {"north": 0.1, "south": 0.3, "west": 0.5}
EVERYBODY = ("north", "south", "west")
OTHERS = ("north", "south")


@dataclass
class WatchedExchange(FakeExchange):
    """Notes the batches that are begun: number, first round, cohort. ``alter`` may change what a site answers."""

    alter: Callable[[str, Request, bytes], bytes] = lambda site, request, payload: payload

    def __post_init__(self) -> None:
        super().__post_init__()
        self.batches: dict[int, tuple[int, tuple[str, ...]]] = {}

    def _step(self, site: str, request: Request, payload: bytes, message: bytes) -> bytes:
        if isinstance(request, Advertise):
            asked = AdvertiseRequest.from_bytes(payload)
            self.batches[asked.number] = asked.first_round, asked.cohort
        return self.alter(site, request, super()._step(site, request, payload, message))


def context(tmp_path: Path, exchange: FakeExchange) -> RunContext:
    return RunContext(
        study=exchange.study,
        run_id="run-1",
        exchange=exchange,
        federation=exchange.federation,
        checkpoint=checkpoint_path(tmp_path, "run-1"),
        patience_seconds=0.0,
        start_seconds=30.0,
    )


def run(tmp_path: Path, exchange: FakeExchange) -> RunState:
    return run_rounds(context(tmp_path, exchange))


def survivors(state: RunState) -> list[tuple[str, ...]]:
    return [record.survivors for record in state.progress.rounds]


def burned(state: RunState) -> list[str | None]:
    return [record.burned for record in state.progress.rounds]


# When there is a new batch.


@pytest.mark.parametrize(("size", "first_rounds"), [(1, [1, 2, 3, 4]), (2, [1, 3]), (3, [1, 4]), (4, [1])])
def test_a_batch_serves_as_many_rounds_as_the_study_says_the_final_test_among_them(
    tmp_path, size: int, first_rounds: list[int]
) -> None:
    study = make_study({"num_sites_max = 3": f"num_sites_max = 3\nrounds_per_batch = {size}"})
    exchange = WatchedExchange(study, SHIFTS)
    state = run(tmp_path, exchange)
    assert [first for first, _ in exchange.batches.values()] == first_rounds
    assert list(exchange.batches) == list(range(1, len(first_rounds) + 1))
    assert burned(state) == [None] * 3


def test_a_site_that_joins_gets_a_new_batch_with_the_others(tmp_path) -> None:
    exchange = WatchedExchange(STUDY, SHIFTS)
    everybody, asked = exchange.sites, exchange.seen
    exchange.sites = lambda: everybody() if any(r.kind == "train" for _, r in asked) else OTHERS
    state = run(tmp_path, exchange)
    assert exchange.batches == {1: (1, OTHERS), 2: (2, EVERYBODY)}
    assert survivors(state) == [OTHERS, EVERYBODY, EVERYBODY]


def test_a_site_that_was_away_for_a_round_and_remembers_needs_no_new_batch(tmp_path) -> None:
    exchange = WatchedExchange(STUDY, SHIFTS)
    everybody, asked = exchange.sites, exchange.seen
    exchange.sites = lambda: OTHERS if sum(r.kind == "unmask" for _, r in asked) == 3 else everybody()
    state = run(tmp_path, exchange)
    assert exchange.batches == {1: (1, EVERYBODY)}
    assert survivors(state) == [EVERYBODY, OTHERS, EVERYBODY]


@pytest.mark.parametrize("kind", [Train, Confirm, Unmask])
def test_a_site_that_restarted_misses_the_exchange_and_returns_with_the_next_batch(
    tmp_path, kind: type[Request]
) -> None:
    exchange = WatchedExchange(STUDY, SHIFTS)

    def restarts(site: str, request: Request) -> bool:
        if site == "west" and isinstance(request, kind) and request.round == 1:  # type: ignore[union-attr]
            exchange.restart(site)
        return False

    exchange.absent = restarts
    state = run(tmp_path, exchange)
    if kind is Train:
        assert exchange.batches == {1: (1, EVERYBODY), 2: (2, EVERYBODY)}
        assert survivors(state) == [OTHERS, EVERYBODY, EVERYBODY]
    else:  # that West lost its batch is found at the next round
        assert exchange.batches == {1: (1, EVERYBODY), 2: (3, EVERYBODY)}
        assert survivors(state) == [EVERYBODY, OTHERS, EVERYBODY]
    assert burned(state) == [None] * 3


def test_the_cohort_is_cut_at_the_studys_most_and_a_place_that_is_free_is_filled(tmp_path) -> None:
    """Five sites, three places; North does not come to the third round."""
    shifts = {"east": 0.1, "north": 0.2, "south": 0.3, "up": 0.4, "west": 0.5}
    study = make_study({"num_rounds = 3": "num_rounds = 4"})
    exchange = WatchedExchange(study, shifts)
    everybody, asked = exchange.sites, exchange.seen

    def there() -> tuple[str, ...]:
        trained = len({r.round for _, r in asked if isinstance(r, Train)})
        return tuple(site for site in everybody() if not (site == "north" and trained >= 2))

    exchange.sites = there
    state = run(tmp_path, exchange)
    assert exchange.batches == {1: (1, ("east", "north", "south")), 2: (3, ("east", "south", "up"))}
    assert survivors(state) == [("east", "north", "south")] * 2 + [("east", "south", "up")] * 2


def test_batch_numbers_and_first_rounds_only_grow_also_over_resumptions(tmp_path) -> None:
    study = make_study({"num_sites_max = 3": "num_sites_max = 3\nrounds_per_batch = 2"})
    exchange = WatchedExchange(study, SHIFTS)
    numbers: list[tuple[int, int]] = []
    for stop in ("share", "escrow", "train", None):

        def kill(site: str, request: Request, stop: str | None = stop) -> bool:
            if request.kind == stop:
                raise KeyboardInterrupt
            return False

        exchange.absent, exchange.batches = kill, {}
        try:
            run_rounds(context(tmp_path, exchange), resume=bool(numbers))
        except KeyboardInterrupt:
            assert stop is not None
        numbers += [(number, first) for number, (first, _) in exchange.batches.items()]
    assert [number for number, _ in numbers] == list(range(1, len(numbers) + 1))
    assert [first for _, first in numbers] == sorted(first for _, first in numbers)


def test_a_site_with_another_roster_is_told_apart_and_asked_no_more(tmp_path) -> None:
    behave = refusing("roster-differs", site="west", kind=Advertise)
    exchange = FakeExchange(STUDY, SHIFTS, behave=behave)
    state = run(tmp_path, exchange)
    assert dict(state.attendance.refused) == {"west": "roster-differs"}
    assert survivors(state) == [OTHERS] * 3
    assert sum(site == "west" and isinstance(r, Advertise) for site, r in exchange.seen) == 1


# Sites that misbehave.


def altering(kind: type[Request], number: int, change: Callable[[bytes], bytes]) -> WatchedExchange:
    """West changes its *number*-th answer of this kind, and none other."""
    counted: list[Request] = []

    def alter(site: str, request: Request, payload: bytes) -> bytes:
        if site == "west" and isinstance(request, kind):
            counted.append(request)
            if len(counted) == number:
                return change(payload)
        return payload

    return WatchedExchange(STUDY, SHIFTS, alter=alter)


@pytest.mark.parametrize(
    "change",
    [
        lambda payload: os.urandom(31).rjust(32, b"\0") + payload[32:],
        lambda payload: payload[:-32] + os.urandom(31).rjust(32, b"\0"),
        lambda payload: payload[32:] + payload[:32],
    ],
    ids=["first", "last", "swapped"],
)
def test_a_site_that_gives_false_shares_is_named_and_asked_no_more_while_the_others_finish(
    tmp_path, change: Callable[[bytes], bytes]
) -> None:
    exchange = altering(Unmask, 2, change)
    result = run_study(context(tmp_path, exchange), engine="local")
    assert [entry.burned for entry in result.rounds] == [None] * 3
    assert [entry.survivors for entry in result.rounds] == [EVERYBODY, EVERYBODY, OTHERS]
    assert {site.name: site.refused for site in result.sites} == {
        "north": None,
        "south": None,
        "west": "misbehaved",
    }
    after = exchange.seen[max(at for at, (_, r) in enumerate(exchange.seen) if r.kind == "unmask") :]
    assert not [request for site, request in after if site == "west"]


@pytest.mark.parametrize(
    "change",
    [
        lambda payload: b"\xff" * 32 + payload[32:],
        lambda payload: payload[:-1],
        lambda payload: payload + b"\0",
    ],
    ids=["no element", "short", "long"],
)
def test_shares_that_cannot_be_read_are_left_out_and_nobody_is_named(
    tmp_path, change: Callable[[bytes], bytes]
) -> None:
    result = run_study(context(tmp_path, altering(Unmask, 2, change)), engine="local")
    assert [entry.burned for entry in result.rounds] == [None] * 3
    assert [entry.survivors for entry in result.rounds] == [EVERYBODY] * 3
    assert {site.refused for site in result.sites} == {None}


def test_a_site_that_misbehaved_is_not_asked_again_after_a_resumption(tmp_path) -> None:
    exchange = altering(Unmask, 1, lambda payload: payload[32:] + payload[:32])
    answer = exchange.behave

    def pull_the_plug(site: str, request: Request) -> bytes | None:
        if isinstance(request, Train) and request.round == 3:
            raise KeyboardInterrupt
        return answer(site, request)

    exchange.behave = pull_the_plug
    with pytest.raises(KeyboardInterrupt):
        run_rounds(context(tmp_path, exchange))
    exchange.behave, before = answer, len(exchange.seen)
    state = run_rounds(context(tmp_path, exchange), resume=True)
    assert dict(state.attendance.refused) == {"west": "misbehaved"}
    assert not [request for site, request in exchange.seen[before:] if site == "west"]


def test_false_shares_of_more_sites_than_can_be_missed_burn_the_round_and_name_them_all(tmp_path) -> None:
    study = make_study({"num_sites_max = 3": "num_sites_max = 4", "threshold = 2": "threshold = 3"})
    liars = ("up", "west")

    def alter(site: str, request: Request, payload: bytes) -> bytes:
        lies = site in liars and isinstance(request, Unmask) and request.round == 1
        return os.urandom(31).rjust(32, b"\0") + payload[32:] if lies else payload

    exchange = WatchedExchange(study, {**SHIFTS, "east": 0.2, "up": 0.1}, alter=alter)
    exchange.known_sites = exchange.sites = lambda: ("east", "north", "up", "west")
    with pytest.raises(RuntimeError, match="refusals: up: misbehaved, west: misbehaved"):
        run(tmp_path, exchange)


def test_a_dealer_whose_shares_give_no_secret_burns_one_round_and_is_named(tmp_path) -> None:
    """The peers could not know: they committed to nothing but their own shares. All others finish."""
    exchange = WatchedExchange(STUDY, SHIFTS)

    def alter(site: str, request: Request, payload: bytes) -> bytes:
        return (
            _other_secrets(exchange, site, payload) if (site, request.kind) == ("west", "share") else payload
        )

    exchange.alter = alter
    state = run(tmp_path, exchange)
    assert burned(state) == [
        "the shares that west dealt do not give the secret that it committed to",
        None,
        None,
    ]
    assert survivors(state)[1:] == [OTHERS] * 2
    assert dict(state.attendance.refused) == {"west": "misbehaved"}
    assert exchange.batches == {1: (1, EVERYBODY)}, "the others' secrets of the batch are good"


def _other_secrets(exchange: FakeExchange, site: str, payload: bytes) -> bytes:
    state = exchange.sessions[site]._setup
    assert isinstance(state, Shared)
    num_rounds = len(state.seat.context.rounds)
    reply = ShareReply.from_bytes(
        payload, dealer=state.seat.position, members=state.members, num_rounds=num_rounds
    )
    commitments = os.urandom(2 * HASH_BYTES * num_rounds)
    signature = sign(
        exchange.identities[site],
        statements.DEALINGS,
        state.seat.position,
        state.ctx,
        state.members,
        tuple(map(statements.dealing_digest, reply.dealings.values())),
        statements.secrets_digest(commitments),
    )
    return replace(reply, secret_commitments=commitments, signature=signature).to_bytes()


def test_an_escrow_that_does_not_open_burns_the_round_in_which_it_is_needed_and_names_its_site(
    tmp_path,
) -> None:
    """West sends no vector in round 2, and what the others would need instead is not there."""
    exchange = WatchedExchange(STUDY, SHIFTS)

    def alter(site: str, request: Request, payload: bytes) -> bytes:
        return (
            _other_escrows(exchange, site, payload) if (site, request.kind) == ("west", "escrow") else payload
        )

    exchange.alter = alter
    exchange.absent = lambda site, r: site == "west" and isinstance(r, Train) and r.round == 2
    state = run(tmp_path, exchange)
    assert burned(state) == [None, "the escrow of west does not open", None]
    assert survivors(state) == [EVERYBODY, OTHERS, OTHERS]
    assert dict(state.attendance.refused) == {"west": "misbehaved"}


def _other_escrows(exchange: FakeExchange, site: str, payload: bytes) -> bytes:
    state = exchange.sessions[site]._setup
    position, ctx = state.seat.position, state.ctx
    num_rounds = len(state.seat.context.rounds)
    reply = EscrowReply.from_bytes(payload, members=range(len(SHIFTS)), num_rounds=num_rounds)
    reply = replace(reply, escrows=tuple(os.urandom(len(one)) for one in reply.escrows))
    signature = sign(
        exchange.identities[site], statements.ESCROW, position, ctx, statements.escrow_digest(reply)
    )
    return replace(reply, signature=signature).to_bytes()


def test_a_site_whose_bundle_is_bad_is_in_no_round_with_those_that_complain(tmp_path) -> None:
    """A complaint names nobody: the one who complains could be lying."""
    exchange = WatchedExchange(STUDY, SHIFTS)

    def alter(site: str, request: Request, payload: bytes) -> bytes:
        return _bad_bundles(exchange, site, payload) if (site, request.kind) == ("west", "share") else payload

    exchange.alter = alter
    state = run(tmp_path, exchange)
    assert burned(state) == [None] * 3
    assert survivors(state) == [OTHERS] * 3
    assert not any(site == "west" and isinstance(r, Train | Evaluate) for site, r in exchange.seen)
    assert not state.attendance.refused


def _bad_bundles(exchange: FakeExchange, site: str, payload: bytes) -> bytes:
    state = exchange.sessions[site]._setup
    assert isinstance(state, Shared)
    position, num_rounds = state.seat.position, len(state.seat.context.rounds)
    reply = ShareReply.from_bytes(payload, dealer=position, members=state.members, num_rounds=num_rounds)
    dealings = {
        holder: replace(dealing, sealed=os.urandom(len(dealing.sealed)))
        for holder, dealing in reply.dealings.items()
    }
    signature = sign(
        exchange.identities[site],
        statements.DEALINGS,
        position,
        state.ctx,
        state.members,
        tuple(map(statements.dealing_digest, dealings.values())),
        statements.secrets_digest(reply.secret_commitments),
    )
    return replace(reply, dealings=dealings, signature=signature).to_bytes()


@pytest.mark.parametrize("kind", [Advertise, Share, Escrow])
@pytest.mark.parametrize(
    "change",
    [
        lambda payload: payload[:-1] + bytes([payload[-1] ^ 1]),
        lambda payload: payload[:-1],
        lambda payload: b"",
    ],
    ids=["altered", "short", "empty"],
)
def test_garbage_in_a_setup_costs_its_sender_that_round_only(
    tmp_path, kind: type[Request], change: Callable[[bytes], bytes]
) -> None:
    exchange = altering(kind, 1, change)
    state = run(tmp_path, exchange)
    assert burned(state) == [None] * 3
    assert survivors(state) == [OTHERS, EVERYBODY, EVERYBODY]
    assert not state.attendance.refused, "bytes that are not signed show nobody's fault"


@pytest.mark.parametrize(
    "change",
    [
        lambda payload: payload[:-1] + bytes([payload[-1] ^ 1]),
        lambda payload: bytes([payload[0] ^ 1]) + payload[1:],
        lambda payload: payload[:-4],
    ],
    ids=["vector", "signature", "length"],
)
def test_a_vector_that_is_not_what_its_site_signed_is_left_out(
    tmp_path, change: Callable[[bytes], bytes]
) -> None:
    state = run(tmp_path, altering(Train, 2, change))
    assert burned(state) == [None] * 3
    assert survivors(state) == [EVERYBODY, OTHERS, EVERYBODY]
    assert state.progress.rounds[1].refusals == {"west": "bad-reply"}


def test_a_false_confirmation_is_left_out_and_the_sum_is_opened_by_the_others(tmp_path) -> None:
    state = run(tmp_path, altering(Confirm, 2, lambda payload: os.urandom(len(payload))))
    assert burned(state) == [None] * 3
    assert survivors(state) == [EVERYBODY] * 3
    assert not state.attendance.refused


def test_an_answer_of_one_exchange_is_not_taken_for_another(tmp_path) -> None:
    """What West answered to Train comes again as its answer to Confirm."""
    kept: list[bytes] = []

    class Repeating(FakeExchange):
        def _answer(self, site: str, request: Request, payload: bytes, message: bytes) -> bytes:
            if site == "west" and isinstance(request, Confirm):
                return kept[-1]
            reply = super()._answer(site, request, payload, message)
            if site == "west" and isinstance(request, Train | Evaluate):
                kept.append(reply)
                header, _ = decode_reply(reply)
                assert isinstance(header, Answer)
            return reply

    state = run(tmp_path, Repeating(STUDY, SHIFTS))
    assert burned(state) == [None] * 3
    assert survivors(state) == [EVERYBODY] * 3


def test_what_a_round_took_is_noted_by_phase(tmp_path) -> None:
    state = run(tmp_path, FakeExchange(STUDY, SHIFTS))
    assert [set(record.seconds) for record in state.progress.rounds] == [
        {"setup", "exchange", "confirm", "unmask", "aggregate"}
    ] * 3
    assert [record.seconds["setup"] > 0 for record in state.progress.rounds] == [True, False, False]


def test_the_result_says_what_no_single_vector_is_learnt_under(tmp_path) -> None:
    run_study(context(tmp_path, FakeExchange(STUDY, SHIFTS)), engine="local")
    written = json.loads((checkpoint_path(tmp_path, "run-1").parent / "result.json").read_text("utf-8"))
    assert written["privacy"]["secure_aggregation"] == {
        "threshold": 2,
        "min_sites_in_sum": 2,
        "num_colluding": 0,
        "honest_in_sum": 2,
    }
