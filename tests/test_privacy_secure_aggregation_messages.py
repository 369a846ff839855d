"""Every message has one form as bytes: what decodes is what its writer wrote, all else is refused, by name."""

import contextlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from secure_sites import REQUEST_HASH, Consortium, make_terms, plain_sum, random_vectors

from privacy.secure_aggregation import server_setup, statements
from privacy.secure_aggregation.encoding import Reader
from privacy.secure_aggregation.messages import (
    Advertisement,
    AdvertiseRequest,
    Confirmation,
    ConfirmRequest,
    Dealing,
    EscrowReply,
    EscrowRequest,
    MaskedVector,
    ReceivedDealing,
    ShareReply,
    ShareRequest,
    Survivor,
    UnmaskReply,
    UnmaskRequest,
    bundle_bytes,
    escrow_bytes,
)
from privacy.secure_aggregation.refusals import Malformed, SecureAggregationError
from privacy.secure_aggregation.sealing import PUBLIC_KEY_BYTES

SITES, ROUNDS, LENGTH = 3, 2, 5
MUTANTS_A_MESSAGE = 1000


@dataclass(frozen=True)
class Shape:
    """A batch of which messages are drawn."""

    random: Random
    members: tuple[int, ...]
    num_rounds: int

    @property
    def num_sites(self) -> int:
        return self.members[-1] + 2

    def some(self) -> list[int]:
        return sorted(self.random.sample(self.members, self.random.randrange(len(self.members) + 1)))

    def bytes(self, length: int) -> bytes:
        return self.random.randbytes(length)

    def advertisement(self) -> Advertisement:
        return Advertisement(public_key=self.bytes(PUBLIC_KEY_BYTES), signature=self.bytes(64))

    def dealing(self, *, own: bool = False) -> Dealing:
        sealed = b"" if own else self.bytes(bundle_bytes(self.num_rounds))
        return Dealing(sealed=sealed, commitments=self.bytes(64 * self.num_rounds))

    def received(self) -> ReceivedDealing:
        digests = tuple(self.bytes(32) for _ in self.members)
        return ReceivedDealing(
            dealing=self.dealing(), digests=digests, secrets_digest=self.bytes(32), signature=self.bytes(64)
        )

    def messages(self) -> list[tuple[object, Callable[[bytes], object]]]:
        """One of each kind, with what decodes it."""
        members, num_rounds, num_sites = self.members, self.num_rounds, self.num_sites
        count, dealer = len(members), members[0]
        letters = ("klinik", "Spital-é", "病院")
        names = tuple(self.random.choice(letters) * self.random.randint(1, 9) for _ in self.some())
        vector = np.frombuffer(self.bytes(4 * (num_rounds + 1)), dtype="<u4")
        request = AdvertiseRequest(
            number=self.random.randint(1, 2**32 - 1), first_round=1, roster_hash=self.bytes(32), cohort=names
        )
        advertisements = {site: self.advertisement() for site in self.some()}
        dealings = {site: self.dealing(own=site == dealer) for site in members}
        received = {site: self.received() for site in self.some()}
        escrows = tuple(self.bytes(escrow_bytes(count)) for _ in range(num_rounds))
        escrow = EscrowReply(
            accepted=tuple(self.some()),
            escrows=escrows,
            commitments=self.bytes(32 * count * num_rounds),
            signature=self.bytes(64),
        )
        survivors = {
            site: Survivor(vector_hash=self.bytes(32), signature=self.bytes(64)) for site in self.some()
        }
        confirmations = {
            site: Confirmation(journal_head=self.bytes(32), signature=self.bytes(64)) for site in self.some()
        }
        share_reply = ShareReply(
            dealings=dealings, secret_commitments=self.bytes(64 * num_rounds), signature=self.bytes(64)
        )
        return [
            (request, AdvertiseRequest.from_bytes),
            (self.advertisement(), Advertisement.from_bytes),
            (
                ShareRequest(advertisements=advertisements),
                lambda raw: ShareRequest.from_bytes(raw, num_sites=num_sites),
            ),
            (
                share_reply,
                lambda raw: ShareReply.from_bytes(raw, dealer=dealer, members=members, num_rounds=num_rounds),
            ),
            (
                EscrowRequest(received=received),
                lambda raw: EscrowRequest.from_bytes(
                    raw, num_members=count, num_sites=num_sites, num_rounds=num_rounds
                ),
            ),
            (escrow, lambda raw: EscrowReply.from_bytes(raw, members=members, num_rounds=num_rounds)),
            (
                MaskedVector(signature=self.bytes(64), vector=vector),
                lambda raw: MaskedVector.from_bytes(raw, length=num_rounds),
            ),
            (
                ConfirmRequest(survivors=survivors),
                lambda raw: ConfirmRequest.from_bytes(raw, num_sites=num_sites),
            ),
            (Confirmation(journal_head=self.bytes(32), signature=self.bytes(64)), Confirmation.from_bytes),
            (
                UnmaskRequest(confirmations=confirmations),
                lambda raw: UnmaskRequest.from_bytes(raw, num_sites=num_sites),
            ),
            (
                UnmaskReply(shares=tuple(self.bytes(32) for _ in members)),
                lambda raw: UnmaskReply.from_bytes(raw, num_shares=count),
            ),
        ]


def drawn(seed: int, positions: frozenset[int] = frozenset({0, 1, 2}), num_rounds: int = ROUNDS) -> Shape:
    return Shape(random=Random(seed), members=tuple(sorted(positions)), num_rounds=num_rounds)


@given(st.integers(0, 2**32), st.frozensets(st.integers(0, 20), min_size=1, max_size=6), st.integers(1, 4))
def test_what_is_encoded_decodes_to_itself(seed: int, positions: frozenset[int], num_rounds: int) -> None:
    for message, decode in drawn(seed, positions, num_rounds).messages():
        raw = message.to_bytes()
        found = decode(raw)
        assert found.to_bytes() == raw
        if not isinstance(message, MaskedVector):
            assert found == message
        else:
            assert np.array_equal(found.vector, message.vector)
            assert found.signature == message.signature
        with pytest.raises(Malformed):
            decode(raw + b"\0")
        with pytest.raises(Malformed):
            decode(raw[:-1])


def mutated(raw: bytes, random: Random) -> bytes:
    """*raw* after one to three accidents; half of the time its length stays."""
    kinds = 3 if random.random() < 0.5 else 8
    for _ in range(random.randint(1, 3)):
        at, end = sorted((random.randrange(len(raw) + 1), random.randrange(len(raw) + 1)))
        kind = random.randrange(kinds)
        if kind == 0 and at < len(raw):  # one byte
            raw = raw[:at] + bytes([random.randrange(256)]) + raw[at + 1 :]
        elif kind == 1 and raw:  # one bit of the first numbers, or anywhere
            at = random.randrange(min(len(raw), 12)) if random.random() < 0.3 else random.randrange(len(raw))
            raw = raw[:at] + bytes([raw[at] ^ 1 << random.randrange(8)]) + raw[at + 1 :]
        elif kind == 2:  # pieces of one length swapped
            half = (end - at) // 2
            raw = raw[:at] + raw[at + half : at + 2 * half] + raw[at : at + half] + raw[at + 2 * half :]
        elif kind == 3:  # truncated
            raw = raw[:at]
        elif kind == 4:  # extended
            raw += raw[:at]
        elif kind == 5:  # a piece is missing
            raw = raw[:at] + raw[end:]
        elif kind == 6:  # a piece comes twice
            raw = raw[:end] + raw[at:]
        else:  # a number where lengths and positions stand
            number = struct.pack(">I", random.choice((0, 1, 2, 3, 4, 5, 255, 256, 1001, 2**31, 2**32 - 1)))
            begin = random.choice((0, 4, 40, at))
            raw = raw[:begin] + number + raw[begin + 4 :]
    return raw


@pytest.mark.parametrize("kind", range(11), ids=lambda kind: type(drawn(0).messages()[kind][0]).__name__)
def test_a_mutated_message_is_refused_or_is_exactly_what_its_decoding_encodes_to(kind: int) -> None:
    random, refused = Random(kind), 0
    message, decode = drawn(kind, frozenset({0, 1, 2, 4})).messages()[kind]
    for _ in range(MUTANTS_A_MESSAGE):
        raw = mutated(message.to_bytes(), random)
        try:
            found = decode(raw)
        except Malformed:
            refused += 1
        else:
            assert found.to_bytes() == raw
    assert refused > MUTANTS_A_MESSAGE // 8


@pytest.mark.parametrize(
    "positions", [(1, 0), (1, 1), (0, 1, 9), (0, 2**32 - 1)], ids=["unordered", "twice", "past", "far past"]
)
def test_positions_that_do_not_increase_below_the_number_of_sites_are_refused(
    positions: tuple[int, ...],
) -> None:
    raw = struct.pack(">I", len(positions)) + b"".join(
        struct.pack(">I", position) + bytes(64) for position in positions
    )
    with pytest.raises(Malformed):
        UnmaskRequest.from_bytes(raw, num_sites=9)


# Mutated requests given to the steps of live sites.


class Live:
    """Sites, and how far they are; `fed` gives site 0 a mutated request at each stage."""

    def __init__(self) -> None:
        terms = make_terms(SITES, threshold=2, min_cohort=3, rounds_per_batch=ROUNDS)
        self.consortium = Consortium(terms=terms, num_sites=SITES)
        self.random = Random(1)
        self.decoded = 0

    def fed(self, request, decode: Callable[[bytes], object], step: Callable, *, times: int = 500) -> None:
        """Site 0 refuses by name, and holds what it held; a copy of it may take what is only another request."""
        raw = request.to_bytes()
        for _ in range(times):
            try:
                found = decode(mutated(raw, self.random))
            except SecureAggregationError:
                continue
            if found == request:
                continue
            self.decoded += 1
            twin = self.consortium.forked()
            held = twin.held()
            try:
                step(twin, found)
            except SecureAggregationError:
                assert twin.held() == held


@pytest.mark.slow
def test_a_mutated_request_makes_a_site_refuse_by_name_and_go_on_with_the_honest_one() -> None:
    live = Live()
    consortium = live.consortium
    context = consortium.context()
    live.fed(
        server_setup.advertise_request(context),
        AdvertiseRequest.from_bytes,
        lambda twin, found: twin.advertise_of(0, found),
    )
    advertising = consortium.advertise(context)
    live.fed(
        advertising.request(),
        lambda raw: ShareRequest.from_bytes(raw, num_sites=SITES),
        lambda twin, found: twin.share_of(0, found),
    )
    shares = consortium.share(advertising)
    requests = server_setup.escrow_requests(advertising, shares)
    live.fed(
        requests[0],
        lambda raw: EscrowRequest.from_bytes(raw, num_members=SITES, num_sites=SITES, num_rounds=ROUNDS),
        lambda twin, found: twin.escrow_of(0, found),
    )
    escrows = {site: consortium.escrow_of(site, requests[site]) for site in range(SITES)}
    batch, vectors = server_setup.finish_setup(advertising, shares, escrows), random_vectors(SITES, LENGTH)
    total = consortium.train(batch, vectors)

    def never(step: Callable) -> Callable:
        def refused(twin: Consortium, found: object) -> None:
            step(twin, found)
            raise AssertionError("a mutated request was taken")

        return refused

    live.fed(
        total.confirm_request(),
        lambda raw: ConfirmRequest.from_bytes(raw, num_sites=SITES),
        never(lambda twin, found: twin.confirm_of(0, found)),
    )
    confirmations = consortium.confirm(total)
    live.fed(
        total.unmask_request(confirmations),
        lambda raw: UnmaskRequest.from_bytes(raw, num_sites=SITES),
        never(lambda twin, found: twin.unmask_of(0, found)),
    )
    assert np.array_equal(consortium.unmask(total, confirmations), plain_sum(vectors, range(SITES)))
    assert live.decoded > 100


@pytest.mark.slow
def test_a_colluders_mutated_key_or_bundle_that_it_signs_harms_no_other_site() -> None:
    consortium = Consortium(
        terms=make_terms(4, threshold=3, num_colluding=1, rounds_per_batch=ROUNDS), num_sites=4
    )
    random, colluder = Random(3), 3
    advertising = consortium.advertise(consortium.context())

    def flipped(raw: bytes) -> bytes:
        at = random.randrange(len(raw))
        return raw[:at] + bytes([raw[at] ^ 1 << random.randrange(8)]) + raw[at + 1 :]

    for _ in range(100):
        key = flipped(advertising.advertisements[colluder].public_key)
        digest = advertising.context.digest
        signature = consortium.signed(colluder, statements.ADVERTISEMENT, digest, key)
        bad = Advertisement(public_key=key, signature=signature)
        twin = consortium.forked()
        with contextlib.suppress(SecureAggregationError):
            twin.share_of(0, ShareRequest(advertisements={**advertising.advertisements, colluder: bad}))

    shares = consortium.share(advertising)
    for _ in range(100):
        honest = shares[colluder].dealings[0]
        bad = Dealing(sealed=flipped(honest.sealed), commitments=honest.commitments)
        dealt = replace(shares[colluder], dealings={**shares[colluder].dealings, 0: bad})
        signed = consortium.resigned_dealings(advertising, dealt, dealer=colluder)
        requests = server_setup.escrow_requests(advertising, {**shares, colluder: signed})
        assert consortium.forked().escrow_of(0, requests[0]).accepted == (1, 2)
    batch, vectors = (
        server_setup.finish_setup(advertising, shares, consortium.escrow(advertising, shares)),
        random_vectors(4, LENGTH),
    )
    consortium.finish_round(consortium.train(batch, vectors), vectors)


def cut_up(written: bytes) -> list[bytes]:
    """A written batch of three sites: two requests, then twice a number and three replies with their positions."""
    reader, parts = Reader(written, "a test"), []
    for _ in range(2):
        length = reader.number()
        parts.append(struct.pack(">I", length) + reader.fixed(length))
    for _ in range(2):
        parts.append(struct.pack(">I", reader.number()))
        for _ in range(SITES):
            position, length = reader.number(), reader.number()
            parts.append(struct.pack(">II", position, length) + reader.fixed(length))
    reader.end()
    return parts


def test_a_batch_that_a_server_wrote_down_is_read_back_and_a_damaged_one_is_refused_by_name() -> None:
    consortium = Consortium(terms=make_terms(SITES, threshold=2, rounds_per_batch=ROUNDS), num_sites=SITES)
    batch, vectors, random = consortium.set_up(), random_vectors(SITES, LENGTH), Random(4)
    written = batch.to_bytes()
    refused = 0
    for _ in range(300):
        try:
            found = server_setup.Batch.from_bytes(mutated(written, random), consortium.federation)
        except SecureAggregationError:
            refused += 1
        else:
            assert found.to_bytes() == written
    assert refused > 250
    parts = cut_up(written)
    for number in (9, 2**32 - 1):
        for index in (3, 7):  # the first share reply, the first escrow reply
            bad = [*parts[:index], struct.pack(">I", number) + parts[index][4:], *parts[index + 1 :]]
            with pytest.raises(Malformed):
                server_setup.Batch.from_bytes(b"".join(bad), consortium.federation)
    with pytest.raises(Malformed, match="dealt no shares"):
        without = [*parts[:2], bytes(4), *parts[6:]]
        server_setup.Batch.from_bytes(b"".join(without), consortium.federation)
    other = Consortium(terms=consortium.terms, num_sites=SITES)
    with pytest.raises(SecureAggregationError):
        server_setup.Batch.from_bytes(written, other.federation)
    again = server_setup.Batch.from_bytes(written, consortium.federation)
    assert again == batch
    consortium.finish_round(consortium.train(again, vectors), vectors)


def test_a_mutated_reply_makes_the_server_refuse_by_name_and_go_on_with_the_honest_one() -> None:
    consortium = Consortium(terms=make_terms(SITES, threshold=2, rounds_per_batch=ROUNDS), num_sites=SITES)
    random, members = Random(2), tuple(range(SITES))

    def refused(reply, decode: Callable[[bytes], object], check: Callable[[object], None]) -> None:
        tried = 0
        while tried < 60:
            raw = bytearray(reply.to_bytes())
            raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
            tried += 1
            with pytest.raises(SecureAggregationError):
                check(decode(bytes(raw)))

    advertising = consortium.advertise(consortium.context())
    refused(
        advertising.advertisements[0],
        Advertisement.from_bytes,
        lambda found: server_setup.check_advertisement(advertising.context, 0, found),
    )
    shares = consortium.share(advertising)
    refused(
        shares[0],
        lambda raw: ShareReply.from_bytes(raw, dealer=0, members=members, num_rounds=ROUNDS),
        lambda found: server_setup.check_dealings(advertising, 0, found),
    )
    escrows = consortium.escrow(advertising, shares)
    refused(
        escrows[0],
        lambda raw: EscrowReply.from_bytes(raw, members=members, num_rounds=ROUNDS),
        lambda found: server_setup.check_escrow(advertising, 0, found),
    )
    batch, vectors = server_setup.finish_setup(advertising, shares, escrows), random_vectors(SITES, LENGTH)
    consortium.vanished = {"train": (0,)}
    total = consortium.train(batch, vectors)
    sent = consortium.upload(0, total.about, REQUEST_HASH, vectors[0])
    refused(
        sent,
        lambda raw: MaskedVector.from_bytes(raw, length=LENGTH),
        lambda found: total.fold(0, found),
    )
    total.fold(0, sent)
    consortium.vanished = {}
    confirmations = consortium.confirm(total)
    refused(confirmations[0], Confirmation.from_bytes, lambda found: total.check_confirmation(0, found))
    request = total.unmask_request(confirmations)
    replies = {site: consortium.unmask_of(site, request) for site in range(SITES)}
    refused(
        replies[0],
        lambda raw: UnmaskReply.from_bytes(raw, num_shares=SITES),
        lambda found: total.check_shares(0, found),
    )
    assert np.array_equal(total.unmasked(replies), plain_sum(vectors, range(SITES)))
