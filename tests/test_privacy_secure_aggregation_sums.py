"""The promise as a property: the sum of all vectors that arrived, exactly, or a named refusal that opens nothing.

A site that vanished before a step and one that did the step but whose reply was lost are the same to the server: the
walk lets every site that is still there do each step, and branches over whose replies arrive. So each leaf stands for
all patterns of sites that vanish at a stage, before or after doing it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, combinations, product
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from secure_sites import (
    REQUEST_HASH,
    STAGES,
    Consortium,
    copied,
    make_terms,
    plain_sum,
    random_vectors,
    secrets_in,
)

from privacy.secure_aggregation import server_setup
from privacy.secure_aggregation.messages import (
    Advertisement,
    Confirmation,
    EscrowReply,
    MaskedVector,
    ShareReply,
)
from privacy.secure_aggregation.refusals import (
    SecureAggregationError,
    TermsRefused,
    TooFewConfirmations,
    TooFewSites,
)
from privacy.secure_aggregation.server_round import MaskedSum
from privacy.secure_aggregation.server_setup import Advertising
from privacy.secure_aggregation.site_setup import History
from privacy.secure_aggregation.terms import Terms


def admissible(num_sites: int, most: int) -> Iterator[Terms]:
    """All terms of a study for at most *most* sites under which *num_sites* may form a batch."""
    for threshold, min_cohort, num_colluding in product(
        range(1, num_sites + 1), range(1, num_sites + 1), range(num_sites)
    ):
        terms = make_terms(
            most, threshold=threshold, min_cohort=min_cohort, num_colluding=num_colluding, rounds_per_batch=1
        )
        try:
            terms.check(num_sites)
        except TermsRefused:
            continue
        yield terms


def subsets(positions: Collection[int]) -> Iterator[tuple[int, ...]]:
    ordered = sorted(positions)
    return chain.from_iterable(combinations(ordered, size) for size in range(len(ordered) + 1))


def survivors_promised(terms: Terms, left: Mapping[str, int]) -> bool:
    """Whether there must be a sum, from how many sites' replies arrived at each stage."""
    uploaded = all(left[stage] >= terms.least for stage in ("advertise", "share", "escrow", "train"))
    return uploaded and left["confirm"] >= terms.threshold and left["unmask"] >= terms.threshold


@dataclass
class Walk:
    """Every pattern of replies that do not arrive, for one number of sites, one round of one batch."""

    terms: Terms
    num_sites: int
    sums: int = 0
    refusals: int = 0
    left: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        self.vectors = random_vectors(self.num_sites, 3, seed=self.num_sites)
        consortium = Consortium(terms=self.terms, num_sites=self.num_sites)
        context = consortium.context()
        request = server_setup.advertise_request(context)
        replies = {site: consortium.advertise_of(site, request) for site in range(self.num_sites)}

        def go_on(there: dict[int, Advertisement]) -> None:
            self.share(consortium.forked(), server_setup.gather_advertisements(context, there))

        self.branch("advertise", replies, go_on, least=self.terms.least)

    def branch(self, stage: str, replies: dict, go_on: Callable[[dict], None], *, least: int) -> None:
        """Go on with every subset of the replies; the server must refuse just where too few arrived."""
        error = TooFewConfirmations if stage in ("confirm", "unmask") else TooFewSites
        for arrived in subsets(replies):
            self.left[stage] = len(arrived)
            there = {site: replies[site] for site in arrived}
            if len(arrived) >= least:
                go_on(there)
                continue
            self.refusals += 1
            with pytest.raises(error) as refusal:
                go_on(there)
            assert refusal.type is error

    def share(self, consortium: Consortium, advertising: Advertising) -> None:
        request = advertising.request()
        replies = {site: consortium.share_of(site, request) for site in advertising.members}

        def go_on(there: dict[int, ShareReply]) -> None:
            requests = server_setup.escrow_requests(advertising, there)
            self.escrow(consortium.forked(), advertising, there, requests)

        self.branch("share", replies, go_on, least=self.terms.least)

    def escrow(self, consortium: Consortium, advertising: Advertising, shares: dict, requests: dict) -> None:
        replies = {}
        for site, request in requests.items():
            shared = consortium.states[site]
            replies[site] = consortium.escrow_of(site, request)
            for path, value in secrets_in(shared):
                erased = path == ".key" or path.startswith(".contributions") or path.endswith(".escrow")
                assert (value is None) == erased, path

        def go_on(there: dict[int, EscrowReply]) -> None:
            batch = server_setup.finish_setup(advertising, shares, there)
            assert batch.round_set(batch.ready) == tuple(there)
            self.train(consortium.forked(), batch)

        self.branch("escrow", replies, go_on, least=self.terms.least)

    def train(self, consortium: Consortium, batch: server_setup.Batch) -> None:
        about = consortium.about(batch, length=3)
        replies = {
            site: consortium.upload(site, about, REQUEST_HASH, self.vectors[site]) for site in about.round_set
        }
        for site in about.round_set:
            for path, value in secrets_in(consortium.rounds[site].begun.secrets):
                assert (value is None) == path.startswith((".self_seed", ".pair_seeds")), path

        def go_on(there: dict[int, MaskedVector]) -> None:
            total = MaskedSum(about)
            for site in reversed(there):
                total.fold(site, there[site])
            total.confirm_request()
            self.confirm(consortium.forked(), total)

        self.branch("train", replies, go_on, least=self.terms.least)

    def confirm(self, consortium: Consortium, total: MaskedSum) -> None:
        request = total.confirm_request()
        replies = {site: consortium.confirm_of(site, request) for site in total.survivors}

        def go_on(there: dict[int, Confirmation]) -> None:
            total.unmask_request(there)
            self.unmask(consortium.forked(), total, there)

        self.branch("confirm", replies, go_on, least=self.terms.threshold)

    def unmask(self, consortium: Consortium, total: MaskedSum, confirmations: dict) -> None:
        request = total.unmask_request(confirmations)
        replies = {}
        for site in confirmations:
            secrets = copied(consortium.rounds[site].begun.secrets)
            uploaded = consortium.rounds[site]
            replies[site] = consortium.unmask_of(site, request)
            assert all(value is None for _, value in secrets_in(uploaded))
            for dealer, one in zip(total.about.round_set, replies[site].shares, strict=True):
                of_b, of_e = secrets.self_shares[dealer].value, secrets.escrow_shares[dealer].value
                assert (one == of_b, one == of_e) == (
                    dealer in total.survivors,
                    dealer not in total.survivors,
                )

        def go_on(there: dict) -> None:
            copy = MaskedSum(total.about, total=total.total.copy(), survivors=total.survivors)
            for site, reply in there.items():
                copy.check_shares(site, reply)
            found = copy.unmasked(there)
            assert np.array_equal(found, plain_sum(self.vectors, total.survivors))
            assert survivors_promised(self.terms, self.left)
            self.sums += 1

        self.branch("unmask", replies, go_on, least=self.terms.threshold)


def chains(terms: Terms, num_sites: int) -> int:
    """How many patterns must end with a sum, counted without the protocol."""
    count = 0
    for gone in product(range(len(STAGES) + 1), repeat=num_sites):
        left = {stage: sum(at > index for at in gone) for index, stage in enumerate(STAGES)}
        promised = survivors_promised(terms, left)
        tolerance = terms.tolerance(num_sites)
        within = (
            sum(at <= STAGES.index("train") for at in gone) <= tolerance.vanish_before_upload
            and sum(at < len(STAGES) for at in gone) <= tolerance.vanish_in_all
        )
        assert promised == within
        count += promised
    return count


def walk_all(num_sites: int, most: int) -> None:
    for terms in admissible(num_sites, most):
        walk = Walk(terms=terms, num_sites=num_sites)
        walk.run()
        assert walk.sums == chains(terms, num_sites)
        assert walk.refusals > 0


@pytest.mark.slow
@pytest.mark.parametrize(("num_sites", "most"), [(2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (4, 4)])
def test_for_up_to_four_sites_every_pattern_of_vanished_sites_gives_the_exact_sum_or_a_named_refusal(
    num_sites: int, most: int
) -> None:
    walk_all(num_sites, most)


@pytest.mark.thorough
def test_for_five_sites_every_pattern_of_vanished_sites_gives_the_exact_sum_or_a_named_refusal() -> None:
    walk_all(5, 5)


def test_one_site_alone_and_terms_beyond_the_bounds_are_never_admissible() -> None:
    assert not list(admissible(1, 4))
    assert {(terms.threshold, terms.num_colluding) for terms in admissible(2, 2)} == {(2, 0)}


def outcome(consortium: Consortium, vectors: Mapping[int, np.ndarray]) -> None:
    """Run a round; it must give the sum just where the promise says so."""
    left = {stage: len(consortium.there(stage)) for stage in STAGES}
    if survivors_promised(consortium.terms, left):
        found = consortium.run_round(consortium.set_up(), vectors)
        assert np.array_equal(found, plain_sum(vectors, consortium.there("train")))
    else:
        with pytest.raises(SecureAggregationError) as refusal:
            consortium.run_round(consortium.set_up(), vectors)
        assert refusal.type in (TooFewSites, TooFewConfirmations)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_unmasking_the_sum_of_masked_vectors_gives_the_plain_sum(data: st.DataObject) -> None:
    num_sites = data.draw(st.integers(2, 6))
    terms = data.draw(st.sampled_from(list(admissible(num_sites, data.draw(st.integers(num_sites, 6))))))
    stages = data.draw(
        st.lists(st.sampled_from((*STAGES, *["never"] * 6)), min_size=num_sites, max_size=num_sites)
    )
    vanished = {stage: [site for site in range(num_sites) if stages[site] == stage] for stage in STAGES}
    length = data.draw(st.integers(0, 9))
    entries = st.lists(st.integers(0, 2**32 - 1), min_size=length, max_size=length)
    vectors = {site: np.array(data.draw(entries), dtype=np.uint32) for site in range(num_sites)}
    outcome(Consortium(terms=terms, num_sites=num_sites, vanished=vanished), vectors)


@pytest.mark.thorough
@pytest.mark.parametrize("num_sites", [5, 6, 7, 8])
def test_for_up_to_eight_sites_every_number_of_vanished_sites_a_stage_gives_the_exact_sum_or_a_refusal(
    num_sites: int,
) -> None:
    """Up to relabelling, which is drawn: of terms with the same least sum, those with most colluders."""
    random = Random(num_sites)
    chosen = {(terms.threshold, terms.least): terms for terms in admissible(num_sites, num_sites)}
    for terms in chosen.values():
        most = num_sites - terms.threshold + 1
        for counts in product(range(most + 1), repeat=len(STAGES)):
            if sum(counts) > most:
                continue
            order = random.sample(range(num_sites), num_sites)
            vanished = {
                stage: [order.pop() for _ in range(count)]
                for stage, count in zip(STAGES, counts, strict=True)
            }
            vectors = random_vectors(num_sites, 2, seed=random.randrange(2**32))
            outcome(Consortium(terms=terms, num_sites=num_sites, vanished=vanished), vectors)


@pytest.mark.parametrize("length", [0, 1, 2**20 + 1])
@pytest.mark.parametrize("gone", ["nobody", "train", "confirm"])
def test_vectors_of_every_length_are_summed(length: int, gone: str) -> None:
    terms = make_terms(3, threshold=2)
    consortium = Consortium(terms=terms, num_sites=3, vanished={gone: (1,)} if gone in STAGES else {})
    outcome(consortium, random_vectors(3, length))


# Several rounds, several batches.


def test_each_round_of_a_batch_and_each_batch_gives_its_own_sum() -> None:
    consortium = Consortium(terms=make_terms(3, threshold=2, rounds_per_batch=3), num_sites=3)
    for number in (1, 2):
        first_round = 1 + 3 * (number - 1)
        batch = consortium.set_up(number=number, first_round=first_round)
        for index in range(first_round, first_round + 3):
            vectors = random_vectors(3, 4, seed=index)
            consortium.vanished = {"train": (index % 3,)} if index % 2 else {}
            found = consortium.run_round(batch, vectors, number=index)
            assert np.array_equal(found, plain_sum(vectors, consortium.there("train")))
        consortium.vanished = {}
        consortium.histories = dict.fromkeys(range(3), History(last_batch=number, last_round=index))


@pytest.mark.parametrize("burned_after", ["begin", "train", "confirm", "some shares"])
def test_a_round_begun_after_a_burned_one_gives_its_sum_and_the_burned_ones_secrets_are_gone(
    burned_after: str,
) -> None:
    consortium = Consortium(terms=make_terms(3, threshold=2, rounds_per_batch=3), num_sites=3)
    batch, vectors = consortium.set_up(), random_vectors(3, 4)
    if burned_after == "begin":
        for site in range(3):
            consortium.begin_of(site, consortium.about(batch), REQUEST_HASH)
    else:
        total = consortium.train(batch, vectors)
        if burned_after != "train":
            confirmations = consortium.confirm(total)
        if burned_after == "some shares":
            consortium.unmask_of(0, total.unmask_request(confirmations))
    burned = dict(consortium.rounds)
    found = consortium.run_round(batch, vectors, number=3)
    assert np.array_equal(found, plain_sum(vectors, range(3)))
    assert all(value is None for state in burned.values() for _, value in secrets_in(state))


def test_a_site_that_skips_rounds_comes_back_in_a_later_one() -> None:
    consortium = Consortium(terms=make_terms(3, threshold=2, rounds_per_batch=4), num_sites=3)
    batch = consortium.set_up()
    skipped = [consortium.states[2].rounds[number] for number in (1, 2)]
    for number, gone in ((1, (2,)), (2, (2,)), (3, ()), (4, (0,))):
        vectors = random_vectors(3, 4, seed=number)
        consortium.vanished = {"train": gone}
        found = consortium.run_round(batch, vectors, number=number)
        assert np.array_equal(found, plain_sum(vectors, {0, 1, 2} - set(gone)))
    assert all(value is None for secrets in skipped for _, value in secrets_in(secrets))


def test_a_site_that_restarted_sits_out_and_returns_with_the_next_batch() -> None:
    consortium = Consortium(terms=replace(make_terms(3, threshold=2), rounds_per_batch=2), num_sites=3)
    batch, vectors = consortium.set_up(), random_vectors(3, 4)
    del consortium.states[1]
    consortium.vanished = {"train": (1,)}
    assert np.array_equal(consortium.run_round(batch, vectors), plain_sum(vectors, (0, 2)))
    consortium.vanished = {}
    consortium.histories = dict.fromkeys(range(3), History(last_batch=1, last_round=1))
    later = consortium.set_up(number=2, first_round=2)
    assert np.array_equal(consortium.run_round(later, vectors, number=2), plain_sum(vectors, range(3)))
