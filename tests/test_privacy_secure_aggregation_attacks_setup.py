"""Attacks on the first two steps of a setup: each is refused, and the honest message that follows is still served.

A malicious server makes up messages; a malicious site (number 3, where one is needed) signs what it likes. The sites
under attack run the real steps.
"""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from secure_sites import Consortium, make_terms

from privacy.secure_aggregation import server_setup, statements
from privacy.secure_aggregation.context import sign
from privacy.secure_aggregation.messages import (
    Advertisement,
    AdvertiseRequest,
    ShareRequest,
)
from privacy.secure_aggregation.refusals import (
    BadSignature,
    CohortRefused,
    CohortTooLarge,
    CohortTooSmall,
    DuplicateKey,
    Malformed,
    OwnMessageChanged,
    Replayed,
    RosterDiffers,
    SecureAggregationError,
    ThresholdTooLow,
    TooFewSites,
)
from privacy.secure_aggregation.sealing import SealingKey
from privacy.secure_aggregation.server_setup import Advertising
from privacy.secure_aggregation.site_setup import History

TERMS = make_terms(4, threshold=3, num_colluding=1)
COLLUDER = 3


def advertised() -> tuple[Consortium, Advertising]:
    consortium = Consortium(terms=TERMS, num_sites=4)
    return consortium, consortium.advertise(consortium.context())


# Step 1: the server chooses the batch.


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"cohort": ("site-01", "site-00", "site-02", "site-03")}, CohortRefused),
        ({"cohort": ("site-00", "site-01", "site-01", "site-02")}, CohortRefused),
        ({"cohort": ("site-00", "site-01", "site-02", "site-99")}, CohortRefused),
        ({"cohort": ("site-01", "site-02", "site-03")}, CohortRefused),
        ({"cohort": ("site-00", "site-01")}, CohortTooSmall),
        ({"cohort": ()}, CohortTooSmall),
        ({"roster_hash": bytes(32)}, RosterDiffers),
    ],
    ids=["unordered", "duplicate", "unknown", "without this site", "too small", "empty", "another roster"],
)
def test_a_cohort_that_the_site_did_not_agree_to_is_refused(
    changes: dict[str, object], error: type[SecureAggregationError]
) -> None:
    consortium = Consortium(terms=TERMS, num_sites=4)
    honest = server_setup.advertise_request(consortium.context())
    with consortium.refusing(error):
        consortium.advertise_of(0, replace(honest, **changes))
    assert not consortium.states
    consortium.finish_setup(consortium.advertise(consortium.context()))


def test_a_cohort_that_grows_past_the_bounds_is_refused() -> None:
    terms = replace(TERMS, num_colluding=0, num_sites_max=6)
    consortium = Consortium(terms=terms, num_sites=7)
    for num_sites, error in ((7, CohortTooLarge), (6, ThresholdTooLow)):
        request = AdvertiseRequest(
            number=1,
            first_round=1,
            roster_hash=consortium.federation.roster_hash,
            cohort=consortium.names[:num_sites],
        )
        with consortium.refusing(error):
            consortium.advertise_of(0, request)
    consortium.advertise_of(0, replace(request, cohort=consortium.names[:5]))


def test_a_study_that_opens_sums_of_fewer_sites_than_the_site_wants_is_refused() -> None:
    consortium = Consortium(terms=replace(TERMS, num_colluding=0), num_sites=4, floor=4)
    with consortium.refusing(TooFewSites, "this site wants 4"):
        consortium.advertise_of(0, server_setup.advertise_request(consortium.context()))
    assert not consortium.states
    agreed = Consortium(terms=replace(TERMS, min_cohort=4), num_sites=4, floor=4)
    agreed.finish_setup(agreed.advertise(agreed.context()))


@pytest.mark.parametrize(("number", "first_round"), [(2, 9), (1, 9), (3, 5), (3, 4)])
def test_a_replayed_batch_or_one_whose_rounds_are_over_is_refused(number: int, first_round: int) -> None:
    consortium = Consortium(terms=TERMS, num_sites=4)
    consortium.histories = dict.fromkeys(range(4), History(last_batch=2, last_round=5))
    honest = server_setup.advertise_request(consortium.context(number=3, first_round=6))
    with consortium.refusing(Replayed):
        consortium.advertise_of(0, replace(honest, number=number, first_round=first_round))
    consortium.finish_setup(consortium.advertise(consortium.context(number=3, first_round=6)))


# Step 2: the server relays the advertisements.


def test_a_server_that_inserts_its_own_key_is_refused() -> None:
    consortium, advertising = advertised()
    key, identity = SealingKey(), Ed25519PrivateKey.generate()
    own = Advertisement(
        public_key=key.public,
        signature=sign(identity, statements.ADVERTISEMENT, 1, advertising.context.digest, key.public),
    )
    honest = advertising.advertisements[1]
    for inserted in (own, replace(honest, public_key=key.public)):
        with consortium.refusing(BadSignature, "site-01"):
            consortium.share_of(0, ShareRequest(advertisements={**advertising.advertisements, 1: inserted}))
    consortium.finish_setup(advertising)


def test_advertisements_swapped_between_two_sites_are_refused() -> None:
    consortium, advertising = advertised()
    swapped = {**advertising.advertisements}
    swapped[1], swapped[2] = swapped[2], swapped[1]
    with consortium.refusing(BadSignature):
        consortium.share_of(0, ShareRequest(advertisements=swapped))
    consortium.finish_setup(advertising)


def test_the_sites_own_advertisement_altered_or_left_out_is_refused() -> None:
    consortium, advertising = advertised()
    own, rest = advertising.advertisements[0], dict(advertising.advertisements)
    other_key = replace(own, public_key=SealingKey().public)
    again = replace(
        other_key,
        signature=consortium.signed(
            0, statements.ADVERTISEMENT, advertising.context.digest, other_key.public_key
        ),
    )
    del rest[0]
    for advertisements in (rest, {**rest, 0: replace(own, signature=bytes(64))}, {**rest, 0: again}):
        with consortium.refusing(OwnMessageChanged):
            consortium.share_of(0, ShareRequest(advertisements=dict(sorted(advertisements.items()))))
    consortium.finish_setup(advertising)


def test_two_sites_with_the_same_sealing_key_are_refused_by_sites_and_server() -> None:
    consortium, advertising = advertised()
    copied = advertising.advertisements[1].public_key
    signature = consortium.signed(COLLUDER, statements.ADVERTISEMENT, advertising.context.digest, copied)
    doubled = {**advertising.advertisements, COLLUDER: Advertisement(public_key=copied, signature=signature)}
    with consortium.refusing(DuplicateKey):
        consortium.share_of(0, ShareRequest(advertisements=doubled))
    with consortium.refusing(DuplicateKey):
        server_setup.gather_advertisements(advertising.context, doubled)
    consortium.finish_setup(advertising)


def test_too_few_advertisements_are_refused() -> None:
    consortium, advertising = advertised()
    few = {position: advertising.advertisements[position] for position in (0, 1)}
    with consortium.refusing(TooFewSites):
        consortium.share_of(0, ShareRequest(advertisements=few))
    consortium.finish_setup(advertising)


@pytest.mark.parametrize("other", ["batch", "first round", "run", "study", "roster", "terms", "cohort"])
def test_an_advertisement_made_for_another_context_is_refused(other: str) -> None:
    consortium, advertising = advertised()
    federation, context = consortium.federation, advertising.context
    strange = {
        "batch": replace(context, number=2),
        "first round": replace(context, first_round=2),
        "run": replace(context, federation=replace(federation, run_id="run-2")),
        "study": replace(context, federation=replace(federation, study_hash="6" * 64)),
        "roster": replace(context, federation=replace(federation, roster_hash=bytes(32))),
        "terms": replace(context, federation=replace(federation, terms=replace(TERMS, min_cohort=3))),
        "cohort": replace(context, cohort=consortium.names[1:]),
    }[other]
    key = SealingKey()
    position = strange.cohort.index("site-03")
    signature = sign(
        consortium.identities[COLLUDER], statements.ADVERTISEMENT, position, strange.digest, key.public
    )
    replayed = Advertisement(public_key=key.public, signature=signature)
    server_setup.check_advertisement(strange, position, replayed)
    with consortium.refusing(BadSignature, "site-03"):
        consortium.share_of(
            0, ShareRequest(advertisements={**advertising.advertisements, COLLUDER: replayed})
        )
    consortium.finish_setup(advertising)


def test_a_server_that_lowers_the_threshold_can_use_no_sites_words() -> None:
    """No message holds the terms: a site takes its own, and what it signs does not fit others."""
    consortium, advertising = advertised()
    federation = replace(consortium.federation, terms=replace(TERMS, threshold=2, num_colluding=0))
    lowered = replace(advertising.context, federation=federation, cohort=consortium.names[:3])
    with consortium.refusing(BadSignature):
        server_setup.check_advertisement(lowered, 0, advertising.advertisements[0])
    consortium.finish_setup(advertising)


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31)], ids=["zero", "one"])
def test_a_colluder_that_advertises_a_key_nobody_can_seal_for_is_refused(point: bytes) -> None:
    consortium, advertising = advertised()
    key = advertising.advertisements[COLLUDER].public_key[:-32] + point
    signature = consortium.signed(COLLUDER, statements.ADVERTISEMENT, advertising.context.digest, key)
    bad = Advertisement(public_key=key, signature=signature)
    with consortium.refusing(Malformed):
        consortium.share_of(0, ShareRequest(advertisements={**advertising.advertisements, COLLUDER: bad}))
    with consortium.refusing(Malformed):
        server_setup.check_advertisement(advertising.context, COLLUDER, bad)
    consortium.finish_setup(advertising)
