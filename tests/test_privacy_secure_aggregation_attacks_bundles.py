"""Attacks on the bundles that sites deal each other: a bad one is not accepted, and the others go on.

As in test_privacy_secure_aggregation_attacks_setup.py, the server is malicious, and site 3 where a site is needed.
"""

import os
from dataclasses import replace

import pytest
from secure_sites import Consortium, make_terms

from privacy.secure_aggregation import server_setup, site_setup, statements
from privacy.secure_aggregation.messages import (
    Dealing,
    EscrowRequest,
    ReceivedDealing,
    ShareRequest,
)
from privacy.secure_aggregation.refusals import (
    Malformed,
    TooFewSites,
)
from privacy.secure_aggregation.server_setup import Advertising
from privacy.secure_aggregation.shamir import PRIME
from privacy.secure_aggregation.site_setup import History

TERMS = make_terms(4, threshold=3, num_colluding=1)
COLLUDER = 3


def advertised() -> tuple[Consortium, Advertising]:
    consortium = Consortium(terms=TERMS, num_sites=4)
    return consortium, consortium.advertise(consortium.context())


def flipped(raw: bytes, at: int = 0) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def after_sharing() -> tuple[Consortium, Advertising, dict[int, EscrowRequest]]:
    consortium, advertising = advertised()
    shares = consortium.share(advertising)
    return consortium, advertising, server_setup.escrow_requests(advertising, shares)


def complained_of(consortium: Consortium, requests: dict[int, EscrowRequest], bad: ReceivedDealing) -> None:
    """Site 0 gets *bad* as site 1's dealing; it accepts the others', and the round goes on with them."""
    received = {**requests[0].received, 1: bad}
    reply = consortium.escrow_of(0, EscrowRequest(received=received))
    assert reply.accepted == (2, 3)
    assert 1 not in consortium.states[0].rounds[1].pair_seeds
    assert 1 not in consortium.states[0].rounds[1].self_shares


@pytest.mark.parametrize(
    "altered",
    [
        lambda one, other: other.received[1],
        lambda one, other: replace(one.received[1], dealing=other.received[1].dealing),
        lambda one, other: one.received[2],
        lambda one, other: replace(one.received[1], signature=one.received[2].signature),
        lambda one, other: replace(
            one.received[1],
            dealing=replace(one.received[1].dealing, sealed=flipped(one.received[1].dealing.sealed, 1120)),
        ),
        lambda one, other: replace(
            one.received[1],
            dealing=replace(
                one.received[1].dealing, commitments=flipped(one.received[1].dealing.commitments)
            ),
        ),
        lambda one, other: replace(
            one.received[1], digests=(*one.received[1].digests[:3], flipped(one.received[1].digests[3]))
        ),
        lambda one, other: replace(one.received[1], secrets_digest=bytes(32)),
    ],
    ids=[
        "another holder's, whole",
        "another holder's shares",
        "another dealer's",
        "another dealer's signature",
        "ciphertext altered",
        "commitment altered",
        "another holder's digest altered",
        "commitment to the secrets altered",
    ],
)
def test_a_bundle_that_is_swapped_altered_or_sent_to_the_wrong_site_is_not_accepted(altered) -> None:
    consortium, _, requests = after_sharing()
    complained_of(consortium, requests, altered(requests[0], requests[2]))


def test_a_pair_where_one_complains_is_left_out_and_the_others_sum_is_right() -> None:
    consortium, advertising = advertised()
    shares = consortium.share(advertising)
    requests = server_setup.escrow_requests(advertising, shares)
    bad = replace(requests[0].received[1], signature=bytes(64))
    requests[0] = EscrowRequest(received={**requests[0].received, 1: bad})
    escrows = {position: consortium.escrow_of(position, requests[position]) for position in range(4)}
    batch = server_setup.finish_setup(advertising, shares, escrows)
    assert len(batch.round_set(batch.ready)) == 3
    assert not {0, 1} <= set(batch.round_set(batch.ready))


def test_an_honest_sites_bundle_that_a_colluder_signs_as_its_own_does_not_open() -> None:
    """The colluder never saw the contribution in it; accepted, it would share the honest site's pair seeds."""
    consortium, advertising = advertised()
    shares = consortium.share(advertising)
    stolen = {**shares[COLLUDER].dealings, 0: shares[1].dealings[0]}
    shares[COLLUDER] = consortium.resigned_dealings(
        advertising, replace(shares[COLLUDER], dealings=stolen), dealer=COLLUDER
    )
    server_setup.check_dealings(advertising, COLLUDER, shares[COLLUDER])
    reply = consortium.escrow_of(0, server_setup.escrow_requests(advertising, shares)[0])
    assert reply.accepted == (1, 2)


def test_a_bundle_that_the_server_sealed_in_an_honest_dealers_name_is_not_accepted() -> None:
    """Anyone can seal for a public key; only the dealer's signature says whose bundle it is."""
    consortium, advertising = advertised()
    shares = consortium.share(advertising)
    requests = server_setup.escrow_requests(advertising, shares)
    forged = consortium.redealt(
        advertising, shares[1], dealer=1, holder=0, altered=lambda plaintext: bytes(32) + plaintext[32:]
    )
    complained_of(consortium, requests, replace(requests[0].received[1], dealing=forged.dealings[0]))


def test_a_bundle_opens_as_from_its_dealer_to_its_holder_in_its_batch_only() -> None:
    consortium, advertising = advertised()
    sealed = consortium.share(advertising)[1].dealings[0].sealed
    key, ctx = consortium.states[0].key, advertising.ctx
    key.open(sealed, statements.bundle_info(ctx, dealer=1, holder=0))
    for other, dealer, holder in ((ctx, 2, 0), (ctx, 1, 2), (ctx, 0, 1), (advertising.context.digest, 1, 0)):
        with pytest.raises(Malformed):
            key.open(sealed, statements.bundle_info(other, dealer=dealer, holder=holder))


def test_a_bundle_of_an_earlier_batch_is_not_accepted() -> None:
    consortium, _, requests = after_sharing()
    again = consortium.forked()
    again.histories = dict.fromkeys(range(4), History(last_batch=1))
    later = again.advertise(again.context(number=2))
    later_requests = server_setup.escrow_requests(later, again.share(later))
    complained_of(again, later_requests, requests[0].received[1])
    assert consortium.escrow_of(0, requests[0]).accepted == (1, 2, 3)


@pytest.mark.parametrize("dealer", [0, 3], ids=["the site itself", "a site that advertised nothing"])
def test_a_dealing_of_no_peer_is_refused(dealer: int) -> None:
    consortium = Consortium(terms=TERMS, num_sites=4, vanished={"advertise": (3,)})
    advertising = consortium.advertise(consortium.context())
    shares = consortium.share(advertising)
    requests = server_setup.escrow_requests(advertising, shares)
    invented = {**requests[0].received, dealer: requests[0].received[1]}
    with consortium.refusing(Malformed):
        consortium.escrow_of(0, EscrowRequest(received=dict(sorted(invented.items()))))
    assert consortium.escrow_of(0, requests[0]).accepted == (1, 2)


def test_too_few_good_bundles_are_refused_and_nothing_is_erased() -> None:
    consortium, _, requests = after_sharing()
    bad = replace(requests[0].received[1], signature=bytes(64))
    for received in ({}, {2: requests[0].received[2]}, {1: bad, 2: requests[0].received[2]}):
        with consortium.refusing(TooFewSites):
            consortium.escrow_of(0, EscrowRequest(received=received))
    assert consortium.escrow_of(0, requests[0]).accepted == (1, 2, 3)


def test_sites_that_were_shown_different_advertisements_do_not_accept_each_other() -> None:
    consortium, advertising = advertised()
    other = replace(
        advertising,
        advertisements={position: advertising.advertisements[position] for position in (0, 1, 2)},
    )
    with_all = [consortium.share_of(position, advertising.request()) for position in (0, COLLUDER)]
    with_three = [consortium.share_of(position, other.request()) for position in (1, 2)]
    shares = dict(zip((0, COLLUDER, 1, 2), with_all + with_three, strict=True))
    assert consortium.states[0].ctx != consortium.states[1].ctx
    received = {
        dealer: ReceivedDealing(
            dealing=shares[dealer].dealings[0],
            digests=(*map(statements.dealing_digest, shares[dealer].dealings.values()), bytes(32))[:4],
            secrets_digest=statements.secrets_digest(shares[dealer].secret_commitments),
            signature=shares[dealer].signature,
        )
        for dealer in (1, 2, COLLUDER)
    }
    with consortium.refusing(TooFewSites, "1 peers"):
        consortium.escrow_of(0, EscrowRequest(received=received))


# A malicious dealer, as its holders see it.


@pytest.mark.parametrize("committed", [True, False], ids=["p or more", "not what was committed to"])
def test_a_dealers_share_that_is_no_field_element_or_not_committed_to_is_not_accepted(
    committed: bool,
) -> None:
    consortium, advertising = advertised()
    shares = consortium.share(advertising)

    def altered(plaintext: bytes) -> bytes:
        share = PRIME.to_bytes(32, "big") if committed else bytes(32)
        return plaintext[:-32] + share

    shares[COLLUDER] = consortium.redealt(
        advertising, shares[COLLUDER], dealer=COLLUDER, holder=0, altered=altered, committed=committed
    )
    requests = server_setup.escrow_requests(advertising, shares)
    assert consortium.escrow_of(0, requests[0]).accepted == (1, 2)
    assert consortium.escrow_of(1, requests[1]).accepted == (0, 2, 3)


def test_a_bundle_that_is_garbage_is_not_accepted() -> None:
    consortium, advertising = advertised()
    shares = consortium.share(advertising)
    honest = shares[COLLUDER].dealings[0]
    garbage = Dealing(sealed=bytes(len(honest.sealed)), commitments=honest.commitments)
    shares[COLLUDER] = consortium.resigned_dealings(
        advertising,
        replace(shares[COLLUDER], dealings={**shares[COLLUDER].dealings, 0: garbage}),
        dealer=COLLUDER,
    )
    requests = server_setup.escrow_requests(advertising, shares)
    assert consortium.escrow_of(0, requests[0]).accepted == (1, 2)


def test_a_setup_step_run_twice_with_other_inputs_gives_nothing() -> None:
    """Even where the shell around a step hands in an old state: what a second reply would need is erased."""
    consortium, _, requests = after_sharing()
    old = consortium.states[0]
    consortium.escrow_of(0, requests[0])
    held = consortium.held()
    fewer = EscrowRequest(received={dealer: requests[0].received[dealer] for dealer in (1, 2)})
    for request in (requests[0], fewer):
        with pytest.raises((RuntimeError, TooFewSites)):
            site_setup.escrow(old, request)
    assert consortium.held() == held


def test_two_share_steps_from_one_state_end_in_one_batch_at_most() -> None:
    consortium, advertising = advertised()
    old = consortium.states[0]
    requests = server_setup.escrow_requests(advertising, consortium.share(advertising))
    three = ShareRequest(advertisements={site: advertising.advertisements[site] for site in (0, 1, 2)})
    other, _ = site_setup.share(old, three, randomness=os.urandom)
    consortium.escrow_of(0, requests[0])
    received = {
        dealer: replace(requests[0].received[dealer], digests=requests[0].received[dealer].digests[:3])
        for dealer in (1, 2)
    }
    with pytest.raises((RuntimeError, TooFewSites)):
        site_setup.escrow(other, EscrowRequest(received=received))
