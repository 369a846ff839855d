"""What malicious sites can do to a round, and what c of them can do together with the server: burn it, not open it."""

from collections.abc import Collection
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from secure_sites import REQUEST_HASH, Consortium, head_of, make_terms, plain_sum, random_vectors

from privacy.secure_aggregation import server_setup, statements
from privacy.secure_aggregation.masks import Vector, subtract_mask
from privacy.secure_aggregation.messages import (
    Confirmation,
    ConfirmRequest,
    MaskedVector,
    UnmaskReply,
    UnmaskRequest,
)
from privacy.secure_aggregation.refusals import (
    BadDealer,
    BadEscrow,
    BadHolder,
    BadSignature,
    CohortTooLarge,
    CohortTooSmall,
    Malformed,
    Replayed,
    RoundSetRefused,
    SecureAggregationError,
    SentinelDiffers,
    TermsRefused,
    ThresholdTooLow,
    TooFewConfirmations,
    TooFewHonest,
)
from privacy.secure_aggregation.sealing import open_escrow, seal_escrow
from privacy.secure_aggregation.server_round import MaskedSum, Round
from privacy.secure_aggregation.server_setup import Advertising, Batch
from privacy.secure_aggregation.shamir import PRIME, combine, element_bytes, lagrange, read_element
from privacy.secure_aggregation.terms import Terms

TERMS = make_terms(4, threshold=3, num_colluding=1)
COLLUDER = 3


class UncheckedTerms(Terms):
    """Terms that no site would accept, to show that the checks are needed."""

    __slots__ = ()

    def check(self, num_sites: int) -> None:
        pass


# The bounds, each at its edge.


@pytest.mark.parametrize(("threshold", "num_colluding"), [(2, 0), (3, 0), (3, 1), (4, 2), (7, 3)])
def test_two_thresholds_must_exceed_sites_and_colluders(threshold: int, num_colluding: int) -> None:
    cohort = 2 * threshold - num_colluding
    terms = make_terms(cohort, threshold=threshold, min_cohort=num_colluding + 2, num_colluding=num_colluding)
    terms.check(cohort - 1)
    with pytest.raises(ThresholdTooLow):
        terms.check(cohort)


@pytest.mark.parametrize(("threshold", "min_cohort"), [(3, 2), (2, 3), (3, 3)], ids=["t", "k", "both"])
def test_every_sum_must_hold_two_honest_sites(threshold: int, min_cohort: int) -> None:
    terms = make_terms(3, threshold=threshold, min_cohort=min_cohort, num_colluding=1)
    if 2 * threshold > 4:
        terms.check(3)
        assert terms.tolerance(3).honest_in_sum == 2
    with pytest.raises(TooFewHonest):
        replace(terms, num_colluding=2).check(3)


def test_the_number_of_sites_must_lie_between_the_least_sum_and_the_studys_most() -> None:
    terms = make_terms(5, threshold=3, min_cohort=4)
    for num_sites in (4, 5):
        terms.check(num_sites)
    for num_sites, error in ((0, CohortTooSmall), (3, CohortTooSmall), (6, CohortTooLarge)):
        with pytest.raises(error):
            terms.check(num_sites)


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 0},
        {"threshold": 5},
        {"min_cohort": 0},
        {"min_cohort": 5},
        {"num_colluding": -1},
        {"rounds_per_batch": 0},
    ],
)
def test_terms_outside_their_range_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(TermsRefused, match="outside its range"):
        replace(TERMS, **changes)


# A server that gathers confirmations for two survivor sets, with c colluders who confirm everything.


def two_sums(terms: Terms, num_sites: int, first: Collection[int], second: Collection[int]) -> int:
    """Number of survivor sets, of two, for which the server gets a threshold of confirmations.

    The sites 0 … c − 1 collude. The honest ones of *first* are told the one set, those of *second* the other; the
    sites of both sets all sent a vector. The sites that were told a set are in it.
    """
    consortium = Consortium(terms=terms, num_sites=num_sites)
    batch, vectors = consortium.set_up(), random_vectors(num_sites, 2)
    total = consortium.train(batch, vectors)
    colluders = range(terms.num_colluding)
    reached = 0
    for told in (first, second):
        fewer = {site: total.survivors[site] for site in sorted({*told, *colluders})}
        if len(fewer) < terms.least:
            continue
        request = ConfirmRequest(survivors=fewer)
        confirmations = {site: consortium.confirm_of(site, request) for site in told}
        digest = statements.survivors_digest(fewer)
        for site in colluders:
            signature = consortium.signed(
                site, statements.CONFIRMATION, total.about.round_ctx, digest, head_of(site)
            )
            confirmations[site] = Confirmation(journal_head=head_of(site), signature=signature)
        asked = UnmaskRequest(confirmations={site: confirmations[site] for site in sorted(confirmations)})
        if len(confirmations) >= terms.threshold:
            for site in told:
                consortium.unmask_of(site, asked)
            reached += 1
        elif told:
            with consortium.refusing(TooFewConfirmations):
                consortium.unmask_of(next(iter(told)), asked)
    return reached


def splits(num_sites: int, num_colluding: int) -> list[tuple[list[int], list[int]]]:
    """Every number of honest sites in two groups, none in both: one can be told no two sets of survivors."""
    honest = range(num_colluding, num_sites)
    return [
        (list(honest[:cut]), list(honest[cut:end]))
        for cut in range(len(honest) + 1)
        for end in range(cut, len(honest) + 1)
    ]


def test_no_admissible_terms_let_two_survivor_sets_be_confirmed_and_the_next_threshold_below_does() -> None:
    """By counting, for up to 12 sites: each honest site confirms one set, each colluder both."""
    for num_sites, threshold, num_colluding in product(range(2, 13), range(1, 13), range(12)):
        if threshold > num_sites or num_colluding >= num_sites:
            continue
        both = any(
            min(len(first), len(second)) + num_colluding >= threshold
            for first, second in splits(num_sites, num_colluding)
        )
        assert both == (2 * threshold <= num_sites + num_colluding)


@pytest.mark.parametrize(
    ("num_sites", "threshold", "num_colluding"), [(3, 2, 0), (3, 3, 1), (4, 3, 0), (4, 3, 1)]
)
def test_a_server_with_colluders_gets_one_survivor_set_confirmed_at_most(
    num_sites: int, threshold: int, num_colluding: int
) -> None:
    terms = make_terms(num_sites, threshold=threshold, num_colluding=num_colluding)
    terms.check(num_sites)
    for first, second in splits(num_sites, num_colluding):
        assert two_sums(terms, num_sites, first, second) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("num_sites", "threshold", "num_colluding"), [(4, 2, 0), (5, 3, 1), (4, 3, 2)])
def test_with_two_thresholds_no_more_than_sites_and_colluders_it_would_get_two(
    num_sites: int, threshold: int, num_colluding: int
) -> None:
    terms = UncheckedTerms(
        num_sites_max=num_sites,
        threshold=threshold,
        min_cohort=2,
        num_colluding=num_colluding,
        rounds_per_batch=1,
    )
    reached = [two_sums(terms, num_sites, *split) for split in splits(num_sites, num_colluding)]
    assert max(reached) == 2


def test_with_two_confirmed_survivor_sets_the_server_would_read_a_single_vector() -> None:
    """What the bound is for: m = 4, t = 2. Sites 0 and 1 open b of site 0, sites 2 and 3 its e."""
    terms = UncheckedTerms(num_sites_max=4, threshold=2, min_cohort=2, num_colluding=0, rounds_per_batch=1)
    consortium = Consortium(terms=terms, num_sites=4)
    batch, vectors = consortium.set_up(), random_vectors(4, 5)
    about = consortium.about(batch)
    sent = {site: consortium.upload(site, about, REQUEST_HASH, vectors[site]) for site in range(4)}
    secrets = []
    for told in ((0, 1), (2, 3)):
        total = MaskedSum(about)
        for site in told:
            total.fold(site, sent[site])
        request = total.unmask_request(
            {site: consortium.confirm_of(site, total.confirm_request()) for site in told}
        )
        shares = [read_element(consortium.unmask_of(site, request).shares[0]) for site in told]
        secrets.append(element_bytes(combine(lagrange(told), shares)))
    assert np.array_equal(stripped(about, sent[0], *secrets), vectors[0])


def stripped(about: Round, sent: MaskedVector, self_seed: bytes, escrow: bytes) -> Vector:
    """Site 0's vector without its masks."""
    vector = sent.vector.astype(np.uint32)
    subtract_mask(vector, statements.self_mask_key(self_seed, about.round_ctx, position=0))
    key = statements.escrow_key(escrow, about.batch.ctx, position=0, number=1)
    seeds = open_escrow(about.batch.escrows[0].escrows[0], key)
    for peer in (1, 2, 3):
        seed = seeds[32 * peer : 32 * peer + 32]
        subtract_mask(vector, statements.pair_mask_key(seed, about.round_ctx, low=0, high=peer))
    return vector[:-1]


# Malicious dealers: the round is burned and they are named.


def set_up_with_bad_dealer(alter) -> tuple[Consortium, Batch]:
    consortium = Consortium(terms=TERMS, num_sites=4)
    advertising = consortium.advertise(consortium.context())
    shares = consortium.share(advertising)
    shares[COLLUDER] = alter(consortium, advertising, shares[COLLUDER])
    server_setup.check_dealings(advertising, COLLUDER, shares[COLLUDER])
    escrows = consortium.escrow(advertising, shares)
    return consortium, server_setup.finish_setup(advertising, shares, escrows)


def inconsistent_shares(consortium: Consortium, advertising: Advertising, reply):
    def altered(plaintext: bytes) -> bytes:
        share = (int.from_bytes(plaintext[32:64], "big") + 1) % PRIME
        return plaintext[:32] + share.to_bytes(32, "big") + plaintext[64:]

    return consortium.redealt(advertising, reply, dealer=COLLUDER, holder=0, altered=altered)


def wrong_secret(consortium: Consortium, advertising: Advertising, reply):
    commitments = bytes(32) + reply.secret_commitments[32:]
    changed = replace(reply, secret_commitments=commitments)
    return consortium.resigned_dealings(advertising, changed, dealer=COLLUDER)


def shares_given(consortium: Consortium, total: MaskedSum) -> dict[int, UnmaskReply]:
    request = total.unmask_request(consortium.confirm(total))
    return {site: consortium.unmask_of(site, request) for site in total.survivors}


@pytest.mark.parametrize("alter", [inconsistent_shares, wrong_secret])
def test_a_dealer_whose_shares_do_not_give_the_secret_it_committed_to_is_named(alter) -> None:
    consortium, batch = set_up_with_bad_dealer(alter)
    vectors = random_vectors(4, 5)
    total = consortium.train(batch, vectors)
    masked, replies = total.total.copy(), shares_given(consortium, total)
    for holder, reply in replies.items():
        total.check_shares(holder, reply)
    with pytest.raises(BadDealer, match="site-03") as refusal:
        total.unmasked(replies)
    assert refusal.value.positions == (COLLUDER,)
    assert np.array_equal(total.total, masked)
    consortium.finish_round(consortium.train(batch, vectors, number=2), vectors)


def bad_escrows(alter) -> tuple[Consortium, Batch]:
    """Site 3's escrow reply is altered and signed by it; nobody notices before it vanishes."""
    consortium = Consortium(terms=TERMS, num_sites=4)
    advertising = consortium.advertise(consortium.context())
    shares = consortium.share(advertising)
    escrows = consortium.escrow(advertising, shares)
    escrows[COLLUDER] = consortium.resigned_escrow(advertising, alter(escrows[COLLUDER]), position=COLLUDER)
    server_setup.check_escrow(advertising, COLLUDER, escrows[COLLUDER])
    return consortium, server_setup.finish_setup(advertising, shares, escrows)


def test_a_garbage_escrow_burns_the_round_in_which_its_site_vanishes_and_names_it() -> None:
    consortium, batch = bad_escrows(
        lambda reply: replace(reply, escrows=(bytes(len(reply.escrows[0])), reply.escrows[1]))
    )
    vectors = random_vectors(4, 5)
    consortium.vanished = {"train": (COLLUDER,)}
    total = consortium.train(batch, vectors)
    masked, replies = total.total.copy(), shares_given(consortium, total)
    with pytest.raises(BadEscrow, match="site-03") as refusal:
        total.unmasked(replies)
    assert refusal.value.positions == (COLLUDER,)
    assert np.array_equal(total.total, masked)
    consortium.finish_round(consortium.train(batch, vectors, number=2), vectors)


def test_an_escrow_that_holds_other_seeds_than_were_committed_to_is_named() -> None:
    """Site 3 seals other seeds under its real e; both ends' commitments agree."""
    consortium = Consortium(terms=TERMS, num_sites=4)
    advertising = consortium.advertise(consortium.context())
    shares = consortium.share(advertising)
    secret = consortium.states[COLLUDER].own[1].escrow.value
    escrows = consortium.escrow(advertising, shares)
    key = statements.escrow_key(secret, advertising.ctx, position=COLLUDER, number=1)
    sealed = (seal_escrow(bytes(32 * 4), key), escrows[COLLUDER].escrows[1])
    escrows[COLLUDER] = consortium.resigned_escrow(
        advertising, replace(escrows[COLLUDER], escrows=sealed), position=COLLUDER
    )
    batch, vectors = server_setup.finish_setup(advertising, shares, escrows), random_vectors(4, 5)
    consortium.vanished = {"train": (COLLUDER,)}
    total = consortium.train(batch, vectors)
    with pytest.raises(BadEscrow, match="committed") as refusal:
        total.unmasked(shares_given(consortium, total))
    assert refusal.value.positions == (COLLUDER,)


def test_sites_with_conflicting_pair_commitments_are_not_put_in_one_round() -> None:
    consortium, batch = bad_escrows(lambda reply: replace(reply, commitments=bytes(len(reply.commitments))))
    vectors = random_vectors(4, 5)
    assert batch.round_set(batch.ready) == (0, 1, 2)
    consortium.finish_round(consortium.train(batch, vectors), vectors)


def test_a_site_that_accepts_nobody_is_left_out_and_the_others_go_on() -> None:
    consortium, batch = bad_escrows(lambda reply: replace(reply, accepted=()))
    vectors = random_vectors(4, 5)
    assert batch.round_set(batch.ready) == (0, 1, 2)
    consortium.finish_round(consortium.train(batch, vectors), vectors)


# Malicious holders and uploaders.


def test_a_holder_that_gives_a_bad_share_is_named_and_the_others_shares_give_the_sum() -> None:
    consortium = Consortium(terms=TERMS, num_sites=4)
    batch, vectors = consortium.set_up(), random_vectors(4, 5)
    total = consortium.train(batch, vectors)
    replies = shares_given(consortium, total)
    honest = replies.pop(COLLUDER)
    swapped = (honest.shares[1], honest.shares[0], *honest.shares[2:])
    for bad in ((bytes(32), *honest.shares[1:]), swapped, replies[0].shares):
        with pytest.raises(BadHolder, match="site-03") as refusal:
            total.check_shares(COLLUDER, UnmaskReply(shares=bad))
        assert refusal.value.positions == (COLLUDER,)
    with pytest.raises(Malformed):
        total.check_shares(COLLUDER, UnmaskReply(shares=(b"\xff" * 32, *honest.shares[1:])))
    total.check_shares(COLLUDER, honest)
    assert np.array_equal(total.unmasked(replies), plain_sum(vectors, range(4)))


def test_a_vector_that_is_not_its_senders_own_is_not_folded() -> None:
    consortium = Consortium(terms=TERMS, num_sites=4)
    batch, vectors = consortium.set_up(), random_vectors(4, 5)
    about = consortium.about(batch)
    total = MaskedSum(about)
    sent = {site: consortium.upload(site, about, REQUEST_HASH, vectors[site]) for site in range(4)}
    total.fold(0, sent[0])
    masked = total.total.copy()
    altered = replace(sent[1], vector=sent[1].vector + np.uint32(1))
    refused: list[tuple[int, MaskedVector, type[SecureAggregationError]]] = [
        (0, sent[0], Replayed),
        (1, sent[0], BadSignature),
        (1, altered, BadSignature),
        (1, replace(sent[1], signature=bytes(64)), BadSignature),
        (1, replace(sent[1], vector=sent[1].vector[:-1]), Malformed),
    ]
    for position, reply, error in refused:
        with pytest.raises(error):
            total.fold(position, reply)
    smaller = MaskedSum(replace(about, round_set=(0, 1, 2)))
    with pytest.raises(RoundSetRefused):
        smaller.fold(3, sent[3])
    assert np.array_equal(total.total, masked)
    assert list(total.survivors) == [0]
    for site in (3, 1, 2):
        total.fold(site, sent[site])
    consortium.finish_round(total, vectors)


def test_a_vector_that_comes_after_the_survivors_were_fixed_is_thrown_away() -> None:
    consortium = Consortium(terms=TERMS, num_sites=4, vanished={"train": (COLLUDER,)})
    batch, vectors = consortium.set_up(), random_vectors(4, 5)
    total = consortium.train(batch, vectors)
    total.confirm_request()
    masked = total.total.copy()
    late = consortium.upload(COLLUDER, total.about, REQUEST_HASH, vectors[COLLUDER])
    with pytest.raises(Replayed, match="late"):
        total.fold(COLLUDER, late)
    assert np.array_equal(total.total, masked)
    consortium.finish_round(total, vectors)
    assert list(total.survivors) == [0, 1, 2]


def test_a_site_that_uploads_with_other_masks_is_found_by_the_sentinel() -> None:
    consortium = Consortium(terms=TERMS, num_sites=4)
    batch, vectors = consortium.set_up(), random_vectors(4, 5)
    about = consortium.about(batch)
    total = MaskedSum(about)
    for site in range(3):
        total.fold(site, consortium.upload(site, about, REQUEST_HASH, vectors[site]))
    lie = random_vectors(1, 6)[0]
    vector_hash = statements.vector_hash(lie.tobytes())
    signature = consortium.signed(COLLUDER, statements.VECTOR, about.round_ctx, vector_hash)
    total.fold(COLLUDER, MaskedVector(signature=signature, vector=lie))
    request = total.confirm_request()
    confirmations = {site: consortium.confirm_of(site, request) for site in range(3)}
    asked = total.unmask_request(confirmations)
    replies = {site: consortium.unmask_of(site, asked) for site in range(3)}
    with pytest.raises(SentinelDiffers):
        total.unmasked(replies)
    consortium.finish_round(consortium.train(batch, vectors, number=2), vectors)
