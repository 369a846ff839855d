"""A server that is killed and started again goes on in the middle of a round, with the same sites, or burns it."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from fake_sites import FakeExchange
from secure_sites import secrets_in
from studies import make_study

from client.site import ENDED_BY
from privacy.secure_aggregation.messages import AdvertiseRequest, Confirmation, Survivor
from server.checkpoint import CheckpointError
from server.exchange import SiteReply
from server.pending import Attempt, PendingRound, confirmations_of, survivors_of
from server.round_loop import RESTARTED, run_rounds
from server.run import checkpoint_path, run_study
from server.run_state import RunContext, RunState
from shared_models.messages import (
    Advertise,
    Answer,
    Close,
    Evaluate,
    Open,
    Request,
    Train,
    decode_reply,
    encode,
)
from shared_models.study import Study

STUDY = make_study(
    {
        "num_rounds = 3": "num_rounds = 2",
        "validation_rounds = [1, 3]": "validation_rounds = [1]",
        "num_sites_max = 3": "num_sites_max = 3\nrounds_per_batch = 2\nmax_burned_rounds = 0",
    }
)
"""Two rounds and the final test: two batches. One burned round would stop the run."""
LENIENT = make_study(
    {"num_rounds = 3": "num_rounds = 2", "validation_rounds = [1, 3]": "validation_rounds = [1]"}
)
"""The same with one batch for all, and burned rounds allowed."""
SETUP, ROUND = ("advertise", "share", "escrow"), ("train", "confirm", "unmask")
SHIFTS = {"north": 0.1, "south": 0.3, "west": 0.5}
NUM_EXCHANGES = 1 + 2 * 3 + 3 * 3 + 1
"""Open, two setups and three rounds of three, close."""
MOMENTS = NUM_EXCHANGES * (2 * len(SHIFTS) + 1)


class Killed(KeyboardInterrupt):
    """The server's process ends."""


@dataclass
class LastingExchange(FakeExchange):
    """Sites that outlive the server, and keep their replies as a `client.site.Site` does.

    ``kill_at`` is the moment at which the server ends, counted over its life: before each request, after the site
    did as asked and before its reply arrives, and when all replies of an exchange are in.
    """

    kill_at: int | None = None
    moments: int = 0
    stored: dict[str, dict[str, tuple[bytes, bytes]]] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)
    joined: list[tuple[str, int]] = field(default_factory=list)
    trained: list[tuple[str, int]] = field(default_factory=list)

    def restart(self, site: str) -> None:
        super().restart(site)
        self.stored.pop(site, None)

    def revive(self, kill_at: int | None = None) -> None:
        """Another server begins."""
        self.kill_at, self.moments = kill_at, 0

    def exchange(
        self,
        requests: Mapping[str, bytes],
        *,
        timeout_seconds: float,
        enough: int | None = None,
        grace_seconds: float = 0.0,
    ) -> Iterator[SiteReply]:
        for site, message in requests.items():
            self._moment()
            for reply in super().exchange({site: message}, timeout_seconds=timeout_seconds):
                self._moment()
                yield reply
        self._moment()

    def _moment(self) -> None:
        if self.moments == self.kill_at:
            raise Killed
        self.moments += 1

    def _answer(self, site: str, request: Request, payload: bytes, message: bytes) -> bytes:
        if isinstance(request, Open) and site in self.sessions:
            return encode(Answer(to="open", run_id=request.run_id, round=0))
        digest, kept = hashlib.sha256(message).digest(), self.stored.setdefault(site, {})
        if request.kind in kept and kept[request.kind][0] == digest:
            return kept[request.kind][1]
        reply = super()._answer(site, request, payload, message)
        if isinstance(decode_reply(reply)[0], Answer) and not isinstance(request, Open | Close):
            for ended in ENDED_BY.get(request.kind, ()):
                kept.pop(ended, None)
            kept[request.kind] = digest, reply
            self._note(site, request, payload)
        return reply

    def _note(self, site: str, request: Request, payload: bytes) -> None:
        if isinstance(request, Train | Evaluate):
            self.trained.append((site, request.round))
        if isinstance(request, Advertise):
            number = AdvertiseRequest.from_bytes(payload).number
            self.batches.append(number)
            self.joined.append((site, number))


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


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> RunState:
    """The run that nobody interrupts."""
    return run_rounds(context(tmp_path_factory.mktemp("unbroken"), FakeExchange(STUDY, SHIFTS)))


def resumed(tmp_path: Path, exchange: FakeExchange) -> RunState:
    return run_rounds(context(tmp_path, exchange), resume=True)


def ends_alike(state: RunState, reference: RunState) -> None:
    """Bit for bit, with no round lost and none repeated."""
    np.testing.assert_array_equal(state.model.weights, reference.model.weights)
    assert state.progress.test == reference.progress.test
    assert state.progress.tested == reference.progress.tested
    for found, expected in zip(state.progress.rounds, reference.progress.rounds, strict=True):
        assert found.burned is None
        assert (found.round, found.asked, found.survivors) == (
            expected.round,
            expected.asked,
            expected.survivors,
        )
        assert found.validation == expected.validation


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", [pytest.param(at, marks=pytest.mark.slow if at % 5 else ()) for at in range(MOMENTS)]
)
def test_a_server_killed_at_any_moment_ends_with_the_same_weights_bit_for_bit(
    tmp_path, reference, moment: int
) -> None:
    exchange = LastingExchange(STUDY, SHIFTS, kill_at=moment)
    with pytest.raises(Killed):
        run_study(context(tmp_path, exchange), engine="local")
    exchange.revive()
    ends_alike(resumed(tmp_path, exchange), reference)
    assert len(set(exchange.trained)) == len(exchange.trained), "no site spent a round twice"
    assert exchange.batches == sorted(exchange.batches)
    assert len(set(exchange.joined)) == len(exchange.joined), "no site took part in a batch twice"


def test_these_are_all_moments(tmp_path) -> None:
    exchange = LastingExchange(STUDY, SHIFTS)
    run_study(context(tmp_path, exchange), engine="local")
    assert exchange.moments == MOMENTS


@pytest.mark.parametrize("life", range(29, 60, 10))
def test_a_server_that_is_killed_again_and_again_gets_there(tmp_path, reference, life: int) -> None:
    """Each lives for as many moments; opening the run takes seven, and a setup, which begins anew, 21."""
    exchange = LastingExchange(STUDY, SHIFTS, kill_at=life)
    running, lives = context(tmp_path, exchange), 0
    while True:
        try:
            run_study(running, engine="local", resume=lives > 0)
        except Killed:
            exchange.revive(life)
            lives += 1
        else:
            break
        assert lives < 100
    assert lives > 1
    exchange.revive()
    ends_alike(resumed(tmp_path, exchange), reference)
    assert len(set(exchange.trained)) == len(exchange.trained)
    assert len(set(exchange.joined)) == len(exchange.joined)


# What is lost, and what then happens.


def killed(tmp_path: Path, kind: str, *, nth: int = 1, study: Study = LENIENT) -> LastingExchange:
    """The server dies in the *nth* exchange of this kind, with one reply in."""
    setups = SETUP if study is STUDY else ()
    order = ["open", *SETUP, *ROUND, *ROUND, *setups, "evaluate", "confirm", "unmask", "close"]
    at = [position for position, name in enumerate(order) if name == kind][nth - 1]
    exchange = LastingExchange(study, SHIFTS, kill_at=at * (2 * len(SHIFTS) + 1) + 2)
    with pytest.raises(Killed):
        run_study(context(tmp_path, exchange), engine="local")
    assert exchange.seen[-1][1].kind == kind
    exchange.revive()
    return exchange


def folder(tmp_path: Path) -> Path:
    return checkpoint_path(tmp_path, "run-1").parent


def burned(state: RunState) -> list[str | None]:
    return [record.burned for record in state.progress.rounds]


@pytest.mark.parametrize("kind", ROUND)
@pytest.mark.parametrize("damage", ["gone", "cut", "altered"])
def test_without_its_batch_a_round_under_way_is_burned_and_the_next_has_a_new_one(
    tmp_path, kind: str, damage: str
) -> None:
    exchange = killed(tmp_path, kind, nth=1)
    path = folder(tmp_path) / "batch.bin"
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-9] if damage == "cut" else content[:-9] + b"x" + content[-8:])
    state = resumed(tmp_path, exchange)
    assert burned(state) == [RESTARTED, None]
    assert state.progress.rounds[0].asked == ("north", "south", "west"), "they have to count it as spent"
    assert state.progress.rounds[1].survivors == ("north", "south", "west")
    assert exchange.batches[-1] == 2
    assert state.progress.test is not None


def test_without_its_batch_the_final_test_is_not_repeated(tmp_path) -> None:
    exchange = killed(tmp_path, "evaluate")
    (folder(tmp_path) / "batch.bin").unlink()
    result = run_study(context(tmp_path, exchange), engine="local", resume=True)
    assert result.test_burned == RESTARTED
    assert result.test == {}
    assert [entry.burned for entry in result.rounds] == [None, None]
    assert (folder(tmp_path) / "result.json").exists()


@pytest.mark.parametrize("kind", ["confirm", "unmask"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_without_its_masked_sum_a_round_under_way_is_burned(tmp_path, kind: str, damage: str) -> None:
    exchange = killed(tmp_path, kind, nth=1)
    path = folder(tmp_path) / "masked-sum.bin"
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-4])
    state = resumed(tmp_path, exchange)
    first, second = burned(state)
    assert first is not None
    assert "masked-sum.bin" in first
    assert second is None


def test_a_damaged_attempt_is_told_and_no_number_is_guessed(tmp_path) -> None:
    exchange = killed(tmp_path, "train", nth=2)
    (folder(tmp_path) / "attempt.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"attempt\.json: cannot be read"):
        resumed(tmp_path, exchange)


@pytest.mark.parametrize("kind", ROUND)
def test_a_round_under_way_goes_on_without_one_site_that_forgot_it(tmp_path, kind: str) -> None:
    """West was asked last and had not answered, but it has the vector that was folded, where one was."""
    exchange = killed(tmp_path, kind, nth=2)
    exchange.restart("west")
    state = resumed(tmp_path, exchange)
    assert burned(state) == [None, None]
    in_the_sum = ("north", "south") if kind == "train" else ("north", "south", "west")
    assert state.progress.rounds[1].survivors == in_the_sum
    assert state.progress.tested == ("north", "south", "west") if kind == "train" else ("north", "south")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("train", "0 of 3 sites sent a vector"),
        ("confirm", "0 of 3 survivors confirmed"),
        ("unmask", "0 sites gave shares"),
    ],
)
def test_a_round_under_way_is_burned_where_all_sites_forgot_it(tmp_path, kind: str, told: str) -> None:
    exchange = killed(tmp_path, kind, nth=1)
    for site in SHIFTS:
        exchange.restart(site)
    state = resumed(tmp_path, exchange)
    first, second = burned(state)
    assert first is not None
    assert told in first
    assert exchange.batches[-1] == 2
    assert second is None or kind != "train"
    assert state.progress.test is not None


@pytest.mark.parametrize("kind", SETUP)
def test_a_batch_whose_successor_was_begun_is_not_used_again(tmp_path, kind: str) -> None:
    """West came back and a batch with it was begun: the others ended theirs, though West is gone again."""
    exchange = LastingExchange(LENIENT, SHIFTS)
    everybody, asked = exchange.sites, exchange.seen

    def there() -> tuple[str, ...]:
        trained = any(request.kind == "train" for _, request in asked)
        return everybody() if trained and not gone else ("north", "south")

    def kill(site: str, request: Request) -> bool:
        if site == "west" and request.kind == kind:
            gone.append(site)
            raise Killed
        return False

    gone: list[str] = []
    exchange.sites, exchange.absent = there, kill
    with pytest.raises(Killed):
        run_rounds(context(tmp_path, exchange))
    state = resumed(tmp_path, exchange)
    assert burned(state) == [None, None]
    assert [record.survivors for record in state.progress.rounds] == [("north", "south")] * 2
    assert exchange.batches[-1] == 3


# What is written down, and when.


def test_every_step_is_on_disk_before_a_site_hears_of_it(tmp_path) -> None:
    exchange = LastingExchange(STUDY, SHIFTS)
    pending, looked = PendingRound(folder(tmp_path)), []

    def look(site: str, request: Request) -> bool:
        attempt = pending.read()
        number = getattr(request, "round", 0)
        if request.kind == "advertise":
            assert attempt.batch not in exchange.batches or attempt.batch == exchange.batches[-1]
            assert attempt.batch == 1 + (attempt.round > 0)
        if request.kind in ("train", "evaluate"):
            assert (attempt.round, attempt.round_set) == (number, request.round_set)
            assert attempt.asked == ("north", "south", "west")
            batch = pending.batch(exchange.federation)
            assert batch is not None
            assert batch.context.number == attempt.batch
        if request.kind == "confirm":
            assert attempt.round == number
            assert attempt.survivors is not None
            assert attempt.confirmations is None
        if request.kind == "unmask":
            assert attempt.confirmations is not None
        looked.append(request.kind)
        return False

    exchange.absent = look
    run_study(context(tmp_path, exchange), engine="local")
    assert {*SETUP, *ROUND, "evaluate"} <= set(looked)


def test_an_attempt_comes_back_as_it_was_written(tmp_path) -> None:
    pending = PendingRound(tmp_path)
    assert pending.read() == Attempt()
    attempt = Attempt(batch=3, round=7, round_set=(0, 2, 10), asked=("a", "c", "k"))
    pending.begin(attempt)
    survivors = {
        position: Survivor(vector_hash=bytes([position] * 32), signature=bytes([position] * 64))
        for position in (0, 2, 10)
    }
    total = np.arange(5, dtype=np.uint32) * np.uint32(2**30)
    survived = pending.survived(attempt, total, survivors)
    confirmations = {
        position: Confirmation(journal_head=bytes([position] * 32), signature=bytes([position] * 64))
        for position in (2, 10)
    }
    pending.confirmed(survived, confirmations)
    found = PendingRound(tmp_path).read()
    assert (found.batch, found.round, found.round_set, found.asked) == (3, 7, (0, 2, 10), ("a", "c", "k"))
    assert survivors_of(found) == survivors
    assert list(survivors_of(found) or ()) == [0, 2, 10]
    assert confirmations_of(found) == confirmations
    np.testing.assert_array_equal(pending.masked_sum(5), total)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_what_the_server_keeps_of_a_round_is_no_secret_of_any_site(tmp_path) -> None:
    """Seeds, shares and keys of all sites are looked for in all files of the run, at every exchange."""
    exchange = LastingExchange(LENIENT, SHIFTS)

    def look(site: str, request: Request) -> bool:
        kept = b"".join(path.read_bytes() for path in folder(tmp_path).iterdir())
        for session in exchange.sessions.values():
            for state in (session._setup, session._round):
                for path, value in secrets_in(state):
                    if value is not None and not path.endswith("key"):
                        looked.append(path)
                        assert value not in kept
        return False

    looked: list[str] = []
    exchange.absent = look
    run_study(context(tmp_path, exchange), engine="local")
    assert len(looked) > 100
