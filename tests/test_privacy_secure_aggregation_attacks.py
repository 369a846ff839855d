"""Attacks on a round: each is refused by the real steps of a site, and the honest message that follows still works.

Attacks on the setup are in test_privacy_secure_aggregation_attacks_setup.py, those of malicious sites on each other
and on the server in test_privacy_secure_aggregation_attacks_sites.py.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from secure_sites import REQUEST_HASH, Consortium, head_of, make_terms, plain_sum, random_vectors

from privacy.secure_aggregation import site_round, statements
from privacy.secure_aggregation.masks import Vector, add_mask, subtract_mask
from privacy.secure_aggregation.messages import (
    Confirmation,
    ConfirmRequest,
    MaskedVector,
    Survivor,
    UnmaskReply,
    UnmaskRequest,
)
from privacy.secure_aggregation.refusals import (
    BadSignature,
    Malformed,
    OtherSurvivorsConfirmed,
    Replayed,
    RoundSetRefused,
    SecureAggregationError,
    SurvivorsRefused,
    TooFewConfirmations,
    TooFewSites,
)
from privacy.secure_aggregation.sealing import open_escrow
from privacy.secure_aggregation.server_round import MaskedSum, Round
from privacy.secure_aggregation.server_setup import Batch
from privacy.secure_aggregation.shamir import combine, element_bytes, lagrange, read_element

TERMS = make_terms(4, threshold=3, num_colluding=1)
ALL = (0, 1, 2, 3)
OTHER_HASH = hashlib.sha256(b"another train request").digest()


@dataclass
class Run:
    """A consortium whose batch is set up; vectors of four sites, and a server that folds."""

    consortium: Consortium
    batch: Batch
    vectors: Mapping[int, Vector]

    @property
    def about(self) -> Round:
        return self.consortium.about(self.batch)

    def upload(self, position: int, about: Round, request_hash: bytes = REQUEST_HASH) -> MaskedVector:
        return self.consortium.upload(position, about, request_hash, self.vectors[position])

    def trained(self) -> MaskedSum:
        return self.consortium.train(self.batch, self.vectors)

    def finish(self, total: MaskedSum | None = None) -> None:
        self.consortium.finish_round(total or self.trained(), self.vectors)


@pytest.fixture
def run() -> Run:
    consortium = Consortium(terms=TERMS, num_sites=4)
    return Run(consortium, consortium.set_up(), random_vectors(4, 5))


def survivor(reply: MaskedVector) -> Survivor:
    return Survivor(
        vector_hash=statements.vector_hash(reply.vector.astype("<u4").tobytes()), signature=reply.signature
    )


# Train: the server chooses round and round set.


@pytest.mark.parametrize(
    ("round_set", "error"),
    [
        ((1, 2, 3), RoundSetRefused),
        ((0, 1), TooFewSites),
        ((0, 2, 1, 3), Malformed),
        ((0, 1, 1, 2), Malformed),
        ((0, 1, 2, 4), Malformed),
        ((-1, 0, 1, 2), Malformed),
    ],
    ids=["without this site", "too small", "unordered", "duplicate", "out of range", "negative"],
)
def test_a_round_set_that_is_not_a_set_of_enough_peers_with_the_site_is_refused(
    run: Run, round_set: tuple[int, ...], error: type[SecureAggregationError]
) -> None:
    with run.consortium.refusing(error):
        run.consortium.begin_of(0, replace(run.about, round_set=round_set), REQUEST_HASH)
    run.finish()


def test_a_round_set_with_a_site_whose_bundle_was_not_accepted_is_refused() -> None:
    consortium = Consortium(terms=TERMS, num_sites=4, vanished={"share": (3,)})
    batch, vectors = consortium.set_up(), random_vectors(4, 5)
    with consortium.refusing(RoundSetRefused, "site-03"):
        consortium.begin_of(0, consortium.about(batch, round_set=ALL), REQUEST_HASH)
    consortium.finish_round(consortium.train(batch, vectors), vectors)


def test_a_round_that_is_replayed_or_not_of_the_batch_is_refused(run: Run) -> None:
    total = run.trained()
    for number in (0, 1, 3, -1):
        with run.consortium.refusing(Replayed):
            run.consortium.begin_of(0, replace(run.about, number=number), REQUEST_HASH)
        with run.consortium.refusing(Replayed):
            run.consortium.begin_of(0, replace(run.about, number=number), OTHER_HASH)
    run.finish(total)


def test_after_a_later_round_an_earlier_one_is_refused(run: Run) -> None:
    total = run.consortium.train(run.batch, run.vectors, number=2)
    with run.consortium.refusing(Replayed):
        run.consortium.begin_of(0, run.about, REQUEST_HASH)
    run.finish(total)


def test_a_site_rolled_back_to_before_its_upload_masks_nothing_a_second_time(run: Run) -> None:
    """The shell around the steps is made to forget: what a second mask would need is erased."""
    ready = run.consortium.states[0]
    run.consortium.begin_of(0, run.about, REQUEST_HASH)
    begun = run.consortium.rounds[0]
    _, again = site_round.begin(
        ready, number=1, round_set=(0, 1, 2), request_hash=OTHER_HASH, length=run.about.length
    )
    first = run.consortium.mask_of(0, run.vectors[0])
    for state in (begun, again):
        with pytest.raises(RuntimeError, match="erased"):
            site_round.mask(state, run.vectors[0])
    total = MaskedSum(run.about)
    total.fold(0, first)
    for position in (1, 2, 3):
        total.fold(position, run.upload(position, run.about))
    run.finish(total)


@pytest.mark.parametrize(
    "different",
    [{"request_hash": OTHER_HASH}, {"round_set": (0, 1, 2)}, {"length": 4}, {"number": 2}],
    ids=["request", "round set", "length", "round"],
)
def test_sites_that_were_asked_for_different_things_do_not_confirm_each_other(
    run: Run, different: dict[str, object]
) -> None:
    """Sites 0 and 1 are asked for one thing and 2 for another; no two sums over both come of it."""
    other = run.consortium.about(run.batch, **different)
    honest = {position: run.upload(position, run.about) for position in (0, 1, 3)}
    request_hash = different.get("request_hash", REQUEST_HASH)
    vectors = {2: run.vectors[2][: other.length]}
    odd = run.consortium.upload(2, other, request_hash, vectors[2])
    mixed = {position: survivor(reply) for position, reply in sorted({**honest, 2: odd}.items())}
    for position in (0, 1):
        with run.consortium.refusing(BadSignature, "site-02"):
            run.consortium.confirm_of(position, ConfirmRequest(survivors=mixed))
    with run.consortium.refusing(BadSignature, "site-00"):
        within = {position: mixed[position] for position in (0, 1, 2)}
        run.consortium.confirm_of(2, ConfirmRequest(survivors=within))
    total = MaskedSum(run.about)
    with run.consortium.refusing(Malformed if "length" in different else BadSignature):
        total.fold(2, odd)
    for position, reply in honest.items():
        total.fold(position, reply)
    run.finish(total)


# Confirm: the server chooses the survivors.


def test_survivors_without_the_sites_own_vector_are_refused(run: Run) -> None:
    total = run.trained()
    survivors = total.survivors
    without = {position: survivors[position] for position in (1, 2, 3)}
    altered = {**survivors, 0: replace(survivors[0], vector_hash=bytes(32))}
    for bad in (without, altered):
        with run.consortium.refusing(SurvivorsRefused):
            run.consortium.confirm_of(0, ConfirmRequest(survivors=bad))
    run.finish(total)


def test_a_survivor_that_is_not_in_the_round_set_is_refused(run: Run) -> None:
    about = run.consortium.about(run.batch, round_set=(0, 1, 2))
    total = MaskedSum(about)
    for position in about.round_set:
        total.fold(position, run.upload(position, about))
    digest = bytes(32)
    signature = run.consortium.signed(3, statements.VECTOR, about.round_ctx, digest)
    stranger = Survivor(vector_hash=digest, signature=signature)
    with run.consortium.refusing(SurvivorsRefused, "round set"):
        run.consortium.confirm_of(0, ConfirmRequest(survivors={**total.survivors, 3: stranger}))
    run.finish(total)


def test_fewer_survivors_than_the_study_asks_for_are_refused(run: Run) -> None:
    total = run.trained()
    few = {position: total.survivors[position] for position in (0, 1)}
    with run.consortium.refusing(TooFewSites):
        run.consortium.confirm_of(0, ConfirmRequest(survivors=few))
    run.finish(total)


def test_a_server_that_invents_a_survivors_vector_is_refused(run: Run) -> None:
    total = run.trained()
    invented = replace(total.survivors[1], vector_hash=bytes(32))
    others = replace(total.survivors[1], signature=total.survivors[2].signature)
    by_colluder = replace(
        invented, signature=run.consortium.signed(3, statements.VECTOR, total.about.round_ctx, bytes(32))
    )
    for bad in (invented, others, by_colluder):
        with run.consortium.refusing(BadSignature, "site-01"):
            run.consortium.confirm_of(0, ConfirmRequest(survivors={**total.survivors, 1: bad}))
    run.finish(total)


def test_a_vector_of_an_earlier_round_replayed_as_a_survivors_is_refused(run: Run) -> None:
    burned = run.trained()
    total = run.consortium.train(run.batch, run.vectors, number=2)
    replayed = {**total.survivors, 1: burned.survivors[1]}
    with run.consortium.refusing(BadSignature, "site-01"):
        run.consortium.confirm_of(0, ConfirmRequest(survivors=replayed))
    run.finish(total)


def test_a_second_set_of_survivors_is_refused_and_the_first_is_signed_again(run: Run) -> None:
    total = run.trained()
    request = total.confirm_request()
    first = run.consortium.confirm_of(0, request)
    for left_out in (1, 2, 3):
        fewer = {position: entry for position, entry in request.survivors.items() if position != left_out}
        with run.consortium.refusing(OtherSurvivorsConfirmed):
            run.consortium.confirm_of(0, ConfirmRequest(survivors=fewer))
    again = run.consortium.signed(3, statements.VECTOR, total.about.round_ctx, bytes(32))
    other_vector = Survivor(vector_hash=bytes(32), signature=again)
    with run.consortium.refusing(OtherSurvivorsConfirmed):
        run.consortium.confirm_of(0, ConfirmRequest(survivors={**request.survivors, 3: other_vector}))
    assert run.consortium.confirm_of(0, request) == first
    run.finish(total)


# Unmask: the server asks for shares.


def confirmed(run: Run) -> tuple[MaskedSum, dict[int, Confirmation]]:
    total = run.trained()
    return total, run.consortium.confirm(total)


def completes(run: Run, total: MaskedSum, confirmations: dict[int, Confirmation]) -> None:
    assert np.array_equal(
        run.consortium.unmask(total, confirmations), plain_sum(run.vectors, total.survivors)
    )


def test_unmask_before_confirm_is_refused(run: Run) -> None:
    total = run.trained()
    request = total.confirm_request()
    others = {position: run.consortium.confirm_of(position, request) for position in (1, 2, 3)}
    with run.consortium.refusing(SurvivorsRefused, "confirmed no survivors"):
        run.consortium.unmask_of(0, UnmaskRequest(confirmations=others))
    run.finish(total)


def test_too_few_confirmations_are_refused(run: Run) -> None:
    total, confirmations = confirmed(run)
    for some in ((), (0,), (0, 1), (2, 3)):
        few = {position: confirmations[position] for position in some}
        with run.consortium.refusing(TooFewConfirmations):
            run.consortium.unmask_of(0, UnmaskRequest(confirmations=few))
    completes(run, total, confirmations)


def test_confirmations_of_other_survivors_are_refused(run: Run) -> None:
    """Site 0 confirmed all four; 1, 2 and 3 were told that 0 vanished."""
    total = run.trained()
    told = ConfirmRequest(survivors={position: total.survivors[position] for position in (1, 2, 3)})
    others = {position: run.consortium.confirm_of(position, told) for position in (1, 2, 3)}
    own = run.consortium.confirm_of(0, total.confirm_request())
    for confirmations in (others, {0: own, **others}):
        with run.consortium.refusing(BadSignature):
            run.consortium.unmask_of(0, UnmaskRequest(confirmations=confirmations))
    with run.consortium.refusing(SurvivorsRefused, "not of a survivor"):
        run.consortium.unmask_of(1, UnmaskRequest(confirmations={0: own, **others}))
    fewer = MaskedSum(total.about, survivors=told.survivors)
    shares = run.consortium.unmask_of(1, fewer.unmask_request(others))
    fewer.check_shares(1, shares)


@pytest.mark.parametrize(
    "other", ["round", "request", "round set", "length", "batch", "run", "study", "roster"]
)
def test_confirmations_that_are_about_something_else_are_refused(run: Run, other: str) -> None:
    total, confirmations = confirmed(run)
    federation, context = run.consortium.federation, run.batch.context
    contexts = {
        "batch": replace(context, number=2),
        "run": replace(context, federation=replace(federation, run_id="run-2")),
        "study": replace(context, federation=replace(federation, study_hash="6" * 64)),
        "roster": replace(context, federation=replace(federation, roster_hash=bytes(32))),
    }
    about = {"number": 1, "request_hash": REQUEST_HASH, "round_set": ALL, "length": 5}
    about |= {
        "round": {"number": 2},
        "request": {"request_hash": OTHER_HASH},
        "round set": {"round_set": (0, 1, 2)},
        "length": {"length": 6},
    }.get(other, {})
    ctx = run.batch.ctx
    if other in contexts:
        ctx = statements.full_context(contexts[other], {})
    round_ctx = statements.round_digest(ctx, **about)
    digest = statements.survivors_digest(total.survivors)
    signature = run.consortium.signed(1, statements.CONFIRMATION, round_ctx, digest, head_of(1))
    strange = Confirmation(journal_head=head_of(1), signature=signature)
    with run.consortium.refusing(BadSignature, "site-01"):
        run.consortium.unmask_of(0, UnmaskRequest(confirmations={**confirmations, 1: strange}))
    completes(run, total, confirmations)


def test_a_vector_signature_replayed_as_a_confirmation_is_refused(run: Run) -> None:
    total, confirmations = confirmed(run)
    replayed = Confirmation(journal_head=head_of(1), signature=total.survivors[1].signature)
    with run.consortium.refusing(BadSignature, "site-01"):
        run.consortium.unmask_of(0, UnmaskRequest(confirmations={**confirmations, 1: replayed}))
    completes(run, total, confirmations)


def test_one_sites_confirmation_given_as_anothers_is_refused(run: Run) -> None:
    total, confirmations = confirmed(run)
    doubled = dict.fromkeys(ALL, confirmations[3])
    with run.consortium.refusing(BadSignature):
        run.consortium.unmask_of(0, UnmaskRequest(confirmations=doubled))
    completes(run, total, confirmations)


def test_shares_are_given_once_and_not_again_to_a_site_rolled_back(run: Run) -> None:
    total, confirmations = confirmed(run)
    rolled_back = run.consortium.rounds[0]
    request = total.unmask_request(confirmations)
    run.consortium.unmask_of(0, request)
    with pytest.raises(RuntimeError, match="erased"):
        site_round.unmask(rolled_back, request)
    fewer = {position: run.consortium.unmask_of(position, request) for position in (1, 2, 3)}
    assert np.array_equal(total.unmasked(fewer), plain_sum(run.vectors, ALL))


# What the server can compute.


def opened_without(run: Run, victim: int, replies: Mapping[int, UnmaskReply], sent: MaskedVector) -> Vector:
    """The victim's vector with every pair mask taken off that its escrow gives away."""
    about, batch = run.about, run.batch
    holders = sorted(replies)[:3]
    shares = [read_element(replies[holder].shares[victim]) for holder in holders]
    secret = element_bytes(combine(lagrange(holders), shares))
    key = statements.escrow_key(secret, batch.ctx, position=victim, number=1)
    seeds = open_escrow(batch.escrows[victim].escrows[0], key)
    vector = sent.vector.astype(np.uint32)
    for peer in set(about.round_set) - {victim}:
        low, high = min(victim, peer), max(victim, peer)
        key = statements.pair_mask_key(seeds[32 * peer : 32 * peer + 32], about.round_ctx, low=low, high=high)
        (subtract_mask if victim == low else add_mask)(vector, key)
    return vector


def test_a_server_that_says_vanished_of_a_site_whose_vector_it_has_still_finds_it_masked(run: Run) -> None:
    victim = 1
    about = run.about
    run.consortium.begin_of(victim, about, REQUEST_HASH)
    self_seed = run.consortium.rounds[victim].secrets.self_seed.value
    sent = run.consortium.mask_of(victim, run.vectors[victim])
    total = MaskedSum(about)
    for position in (0, 2, 3):
        total.fold(position, run.upload(position, about))
    confirmations = {
        position: run.consortium.confirm_of(position, total.confirm_request()) for position in (0, 2, 3)
    }
    request = total.unmask_request(confirmations)
    replies = {position: run.consortium.unmask_of(position, request) for position in (0, 2, 3)}
    opened = opened_without(run, victim, replies, sent)
    assert not np.array_equal(opened[:-1], run.vectors[victim])
    assert opened[-1] != site_round.SENTINEL
    # The self mask is all that is left: with the seed, which no three sites gave away, it would open.
    subtract_mask(opened, statements.self_mask_key(self_seed, about.round_ctx, position=victim))
    assert np.array_equal(opened[:-1], run.vectors[victim])
    assert np.array_equal(total.unmasked(replies), plain_sum(run.vectors, (0, 2, 3)))


def test_a_server_that_asks_for_shares_of_one_site_as_survivor_and_as_vanished_gets_one_of_them() -> None:
    """The only reply that there is has one share a site; which one follows from the confirmed survivors."""
    consortium = Consortium(terms=TERMS, num_sites=4, vanished={"train": (2,)})
    batch, vectors = consortium.set_up(), random_vectors(4, 5)
    total = consortium.train(batch, vectors)
    confirmations = consortium.confirm(total)
    secrets = consortium.forked().rounds[0].begun.secrets
    reply = consortium.unmask_of(0, total.unmask_request(confirmations))
    for dealer, given in zip(total.about.round_set, reply.shares, strict=True):
        kept = secrets.self_shares if dealer == 2 else secrets.escrow_shares
        assert given == (secrets.escrow_shares if dealer == 2 else secrets.self_shares)[dealer].value
        assert given != kept[dealer].value
