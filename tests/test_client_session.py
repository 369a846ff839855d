"""A site's secure session: which step is legal when, what a refusal leaves as it was, and what a new batch erases."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from journals import ledger_in
from secure_sites import REQUEST_HASH, Consortium, make_terms, random_vectors, secrets_in

from client.secure_session import NoBatch, SecureSession
from privacy.ledger import LedgerRun
from privacy.secure_aggregation import server_setup
from privacy.secure_aggregation.messages import (
    Advertisement,
    AdvertiseRequest,
    Confirmation,
    ConfirmRequest,
    EscrowReply,
    EscrowRequest,
    MaskedVector,
    ShareReply,
    ShareRequest,
    UnmaskReply,
    UnmaskRequest,
)
from privacy.secure_aggregation.refusals import (
    CohortRefused,
    CohortTooSmall,
    Malformed,
    OtherSurvivorsConfirmed,
    Replayed,
    RosterDiffers,
    RoundSetRefused,
    SecureAggregationError,
    SurvivorsRefused,
    TooFewSites,
)
from privacy.secure_aggregation.server_round import MaskedSum, Round

ALL = (0, 1, 2)
LENGTH = 5
VECTORS = random_vectors(len(ALL), LENGTH)
TERMS = make_terms(len(ALL), threshold=2, rounds_per_batch=3)
HEAD = bytes(range(32))


class WithSession(Consortium):
    """The session under test sits at position 0; its peers are the protocol's bare steps."""

    def __init__(self, *, last_round: int = 0, floor: int = 2) -> None:
        super().__init__(terms=TERMS, num_sites=len(ALL), floor=floor)
        self.session = SecureSession(self.members[0], last_round=last_round)

    def advertise_of(self, position: int, request: AdvertiseRequest) -> Advertisement:
        if position:
            return super().advertise_of(position, request)
        return Advertisement.from_bytes(self.session.advertise(request.to_bytes()))

    def share_of(self, position: int, request: ShareRequest) -> ShareReply:
        if position:
            return super().share_of(position, request)
        reply = self.session.share(request.to_bytes())
        return ShareReply.from_bytes(reply, dealer=0, members=ALL, num_rounds=TERMS.rounds_per_batch)

    def escrow_of(self, position: int, request: EscrowRequest) -> EscrowReply:
        if position:
            return super().escrow_of(position, request)
        reply = self.session.escrow(request.to_bytes())
        return EscrowReply.from_bytes(reply, members=ALL, num_rounds=TERMS.rounds_per_batch)

    def begin_of(self, position: int, about: Round, request_hash: bytes) -> None:
        if position:
            super().begin_of(position, about, request_hash)
        else:
            self.session.begin(about.number, about.round_set, request_hash=request_hash, length=about.length)

    def mask_of(self, position: int, vector: np.ndarray) -> MaskedVector:
        if position:
            return super().mask_of(position, vector)
        return MaskedVector.from_bytes(self.session.mask(vector), length=LENGTH)

    def confirm_of(self, position: int, request: ConfirmRequest) -> Confirmation:
        if position:
            return super().confirm_of(position, request)
        return Confirmation.from_bytes(
            self.session.confirm(self.number, request.to_bytes(), journal_head=HEAD)
        )

    def unmask_of(self, position: int, request: UnmaskRequest) -> UnmaskReply:
        if position:
            return super().unmask_of(position, request)
        reply, _ = self.session.unmask(self.number, request.to_bytes())
        return UnmaskReply.from_bytes(reply, num_shares=len(ALL))

    # One step of all sites after the other: the attributes are what the server knows by then.

    def advertised(self, *, number: int = 1, first_round: int = 1) -> None:
        self.advertising = self.advertise(self.context(number=number, first_round=first_round))

    def shared(self) -> None:
        self.shares = self.share(self.advertising)

    def escrowed(self) -> None:
        escrows = self.escrow(self.advertising, self.shares)
        self.batch = server_setup.finish_setup(self.advertising, self.shares, escrows)
        self.number = 0

    def begun(self) -> None:
        self.number += 1
        self.total = MaskedSum(self.about(self.batch, number=self.number))
        for position in ALL:
            self.begin_of(position, self.total.about, REQUEST_HASH)

    def masked(self) -> None:
        for position in ALL:
            self.total.fold(position, self.mask_of(position, VECTORS[position]))

    def confirmed(self) -> None:
        self.confirmations = self.confirm(self.total)

    def unmasked(self) -> None:
        assert np.array_equal(self.unmask(self.total, self.confirmations), sum(VECTORS.values()))


PATH = ("new", "advertised", "shared", "escrowed", "begun", "masked", "confirmed", "unmasked")
"""Where a session can be; each but the first is the method that brings all sites there from the one before."""


def brought_to(where: str) -> WithSession:
    sites = WithSession()
    for step in PATH[1 : PATH.index(where) + 1]:
        getattr(sites, step)()
    return sites


def go_on(sites: WithSession, where: str) -> None:
    """To the end of the round."""
    for step in PATH[PATH.index(where) + 1 :]:
        getattr(sites, step)()


STEPS: dict[str, tuple[Callable[[SecureSession], object], set[str]]] = {
    "share": (lambda session: session.share(b"anything"), {"advertised"}),
    "escrow": (lambda session: session.escrow(b"anything"), {"shared"}),
    "begin": (
        lambda session: session.begin(1, ALL, request_hash=REQUEST_HASH, length=LENGTH),
        {"escrowed", "begun", "masked", "confirmed", "unmasked"},
    ),
    "confirm": (lambda session: session.confirm(1, b"anything", journal_head=HEAD), {"masked", "confirmed"}),
    "unmask": (lambda session: session.unmask(1, b"anything"), {"masked", "confirmed"}),
}
"""A call of each step, and where it is legal: there it is refused for what it says, not for its time."""


def states_of(session: SecureSession) -> tuple[object, ...]:
    return session._setup, session._round, session._history


def held(*states: object) -> dict[str, bytes | None]:
    return {f"{at}{path}": value for at, state in enumerate(states) for path, value in secrets_in(state)}


@contextmanager
def refusing(session: SecureSession, error: type[Exception]) -> Iterator[None]:
    """What is done in this block is refused for just this reason, and no state or secret changes."""
    before = states_of(session)
    secrets = held(*before)
    with pytest.raises(error) as refusal:
        yield
    assert refusal.type is error
    assert all(now is then for now, then in zip(states_of(session), before, strict=True))
    assert held(*before) == secrets


@pytest.mark.parametrize("where", PATH)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_at_the_wrong_time_is_refused_and_the_round_goes_on(where: str, step: str) -> None:
    sites = brought_to(where)
    call, legal = STEPS[step]
    if where not in legal:
        with refusing(sites.session, NoBatch):
            call(sites.session)
    elif step != "begin":
        with refusing(sites.session, Malformed):
            call(sites.session)
    elif where != "escrowed":
        with refusing(sites.session, Replayed):
            call(sites.session)
    go_on(sites, where)


@pytest.mark.parametrize("where", [where for where in PATH if where != "begun"])
def test_a_vector_is_masked_once_and_only_in_a_round_that_was_begun(where: str) -> None:
    sites = brought_to(where)
    with refusing(sites.session, RuntimeError):
        sites.session.mask(VECTORS[0])
    go_on(sites, where)


@pytest.mark.parametrize("where", PATH[1:])
def test_a_new_batch_erases_whatever_the_one_before_left(where: str) -> None:
    sites = brought_to(where)
    before = states_of(sites.session)[:2]
    if where != "unmasked":
        assert any(value is not None for value in held(*before).values())
    sites.advertised(number=2, first_round=2)
    assert not any(value is not None for value in held(*before).values())
    sites.shared()
    sites.escrowed()
    sites.number = 1
    go_on(sites, "escrowed")


REFUSED: dict[str, tuple[Callable[[AdvertiseRequest], bytes], type[SecureAggregationError]]] = {
    "no message": (lambda request: b"garbage", Malformed),
    "the same batch again": (lambda request: request.to_bytes(), Replayed),
    "an earlier round": (
        lambda request: replace(request, number=2, first_round=1).to_bytes(),
        Replayed,
    ),
    "another roster": (
        lambda request: replace(request, number=2, first_round=2, roster_hash=bytes(32)).to_bytes(),
        RosterDiffers,
    ),
    "too few sites": (
        lambda request: replace(request, number=2, first_round=2, cohort=request.cohort[:1]).to_bytes(),
        CohortTooSmall,
    ),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("where", ["begun", "masked", "confirmed"])
def test_a_refused_advertisement_leaves_the_batch_and_the_round(where: str, what: str) -> None:
    sites = brought_to(where)
    changed, error = REFUSED[what]
    message = changed(server_setup.advertise_request(sites.context()))
    with refusing(sites.session, error):
        sites.session.advertise(message)
    go_on(sites, where)


def test_a_site_whose_own_least_number_is_above_the_studys_takes_part_in_no_batch() -> None:
    """A sum of fewer sites than it wants could be opened without it, from shares that it gave."""
    assert TERMS.least == 2
    sites = WithSession(floor=3)
    request = server_setup.advertise_request(sites.context())
    with refusing(sites.session, TooFewSites):
        sites.session.advertise(request.to_bytes())
    assert states_of(sites.session)[:2] == (None, None)


def test_a_round_is_begun_once_and_rounds_only_increase() -> None:
    sites = brought_to("escrowed")
    begin = sites.session.begin
    begin(2, ALL, request_hash=REQUEST_HASH, length=LENGTH)
    for over in (1, 2, 4):
        with refusing(sites.session, Replayed):
            begin(over, ALL, request_hash=REQUEST_HASH, length=LENGTH)
    begin(3, ALL, request_hash=REQUEST_HASH, length=LENGTH)
    with refusing(sites.session, Replayed):
        sites.session.advertise(
            server_setup.advertise_request(sites.context(number=2, first_round=3)).to_bytes()
        )
    sites.advertised(number=2, first_round=4)


def test_a_round_that_begins_erases_all_earlier_ones_of_the_batch_and_the_one_under_way() -> None:
    sites = brought_to("masked")
    earlier = [sites.session._round, *sites.session._setup.rounds.values()][:2]  # rounds 1 and 2
    assert any(value is not None for value in held(*earlier).values())
    sites.session.begin(3, ALL, request_hash=REQUEST_HASH, length=LENGTH)
    assert not any(value is not None for value in held(*earlier).values())
    assert not sites.session._setup.rounds


def test_a_refused_round_leaves_the_one_under_way() -> None:
    sites = brought_to("masked")
    with refusing(sites.session, RoundSetRefused):
        sites.session.begin(2, (1, 2), request_hash=REQUEST_HASH, length=LENGTH)
    with refusing(sites.session, Malformed):
        sites.session.begin(2, (1, 0), request_hash=REQUEST_HASH, length=LENGTH)
    go_on(sites, "masked")


def test_the_secrets_of_a_round_go_as_soon_as_they_were_used() -> None:
    """Seeds when the vector is masked, shares when they left, the sealing key and e when the setup ends."""
    sites = brought_to("shared")
    shared = sites.session._setup
    sites.escrowed()
    gone = {path for path, value in secrets_in(shared) if value is None}
    assert {path.split("[")[0].rsplit(".", 1)[-1] for path in gone} >= {"key", "contributions"}
    assert all(own.escrow.erased and not own.self_seed.erased for own in shared.own.values())

    sites.begun()
    secrets = sites.session._round.secrets
    sites.masked()
    assert secrets.self_seed.erased
    assert all(seed.erased for seed in secrets.pair_seeds.values())
    assert not any(share.erased for share in secrets.self_shares.values())
    sites.confirmed()
    sites.unmasked()
    assert not any(value is not None for value in held(secrets).values())


def test_confirm_and_unmask_of_another_round_are_refused_and_the_right_ones_answered() -> None:
    sites = brought_to("masked")
    request = sites.total.confirm_request().to_bytes()
    for other in (0, 2, 3):
        with refusing(sites.session, NoBatch):
            sites.session.confirm(other, request, journal_head=HEAD)
    sites.confirmed()
    shown = sites.total.unmask_request(sites.confirmations).to_bytes()
    for other in (0, 2, 3):
        with refusing(sites.session, NoBatch):
            sites.session.unmask(other, shown)
    sites.unmasked()


def test_nothing_is_unmasked_before_it_was_confirmed_and_nothing_else_confirmed_after() -> None:
    sites = brought_to("masked")
    all_three = sites.total.confirm_request()
    peers = {site: sites.confirm_of(site, all_three) for site in (1, 2)}
    with refusing(sites.session, SurvivorsRefused):
        sites.session.unmask(1, sites.total.unmask_request(peers).to_bytes())
    confirmation = sites.session.confirm(1, all_three.to_bytes(), journal_head=HEAD)
    fewer = ConfirmRequest(survivors={site: all_three.survivors[site] for site in (0, 1)})
    with refusing(sites.session, OtherSurvivorsConfirmed):
        sites.session.confirm(1, fewer.to_bytes(), journal_head=HEAD)
    assert sites.session.confirm(1, all_three.to_bytes(), journal_head=HEAD) == confirmation, (
        "the same may be signed again"
    )
    sites.confirmations = {0: Confirmation.from_bytes(confirmation), **peers}
    sites.unmasked()


def test_erasing_ends_the_batch_and_a_dropped_round_only_itself() -> None:
    sites = brought_to("masked")
    round_1 = sites.session._round
    sites.session.drop_round()
    assert not any(value is not None for value in held(round_1).values())
    with refusing(sites.session, NoBatch):
        sites.session.confirm(1, sites.total.confirm_request().to_bytes(), journal_head=HEAD)
    sites.begun()
    states = states_of(sites.session)[:2]
    sites.session.erase()
    assert not any(value is not None for value in held(*states).values())
    sites.session.erase()
    with refusing(sites.session, NoBatch):
        sites.session.begin(3, ALL, request_hash=REQUEST_HASH, length=LENGTH)
    with refusing(sites.session, Replayed):
        sites.session.advertise(server_setup.advertise_request(sites.context(first_round=3)).to_bytes())
    sites.advertised(number=2, first_round=3)


def test_a_restarted_site_knows_from_its_ledger_which_rounds_are_over(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path)
    ledger.open_run(
        LedgerRun(
            run_id="run-1",
            study_hash="5" * 64,
            sample_rate=0.5,
            noise_multiplier=None,
            delta=None,
            noised_count=10,
            evaluation_deviation=None,
            num_evaluations=0,
        )
    )
    for number in (1, 2, 7):
        ledger.begin_round("run-1", number, num_steps=1)
    last = max(entry.round for entry in ledger_in(tmp_path).rounds("run-1"))
    sites = WithSession(last_round=last)
    for first_round in (1, 6, 7):
        request = server_setup.advertise_request(sites.context(number=9, first_round=first_round))
        with refusing(sites.session, Replayed):
            sites.session.advertise(request.to_bytes())
    sites.advertised(number=9, first_round=8)


def test_a_site_that_is_not_in_the_cohort_does_not_advertise() -> None:
    sites = WithSession()
    request = replace(server_setup.advertise_request(sites.context()), cohort=sites.names[1:])
    with refusing(sites.session, CohortRefused):
        sites.session.advertise(request.to_bytes())
    go_on(sites, "new")
