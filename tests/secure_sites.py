"""Secure aggregation in memory: every site and the server in one process, every message passed as bytes.

`Consortium` runs the real steps of both halves. A test decides who vanishes when, and may put itself in the place of
the server or of a site between any two steps.
"""

import copy
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.secure_aggregation import server_setup, site_round, site_setup, statements
from privacy.secure_aggregation.context import BatchContext, Federation, commitment, sign
from privacy.secure_aggregation.encoding import Field
from privacy.secure_aggregation.masks import Vector
from privacy.secure_aggregation.messages import (
    Advertisement,
    AdvertiseRequest,
    Confirmation,
    ConfirmRequest,
    Dealing,
    EscrowReply,
    EscrowRequest,
    MaskedVector,
    ShareReply,
    ShareRequest,
    UnmaskReply,
    UnmaskRequest,
)
from privacy.secure_aggregation.receipts import Receipt
from privacy.secure_aggregation.refusals import SecureAggregationError
from privacy.secure_aggregation.sealing import SealingKey, seal
from privacy.secure_aggregation.secret import Secret
from privacy.secure_aggregation.server_round import MaskedSum, Round
from privacy.secure_aggregation.server_setup import Advertising, Batch
from privacy.secure_aggregation.site_setup import History, Membership
from privacy.secure_aggregation.terms import Terms

STUDY_HASH = "5" * 64
ROSTER_HASH = hashlib.sha256(b"a roster").digest()
REQUEST_HASH = hashlib.sha256(b"a train request").digest()
STAGES = ("advertise", "share", "escrow", "train", "confirm", "unmask")
NOBODY: frozenset[int] = frozenset()

Seen = Callable[[int, str, bytes], None]
"""Called with position, stage and bytes of every message that the server gets."""


def head_of(position: int) -> bytes:
    """What stands for the journal of the site at this position."""
    return hashlib.sha256(b"journal of %d" % position).digest()


@dataclass
class Consortium:
    """Sites ``site-00`` … of one run, their states, and an honest server.

    ``states`` are those of the setup, ``rounds`` those of the round in progress, by position.
    ``vanished[stage]`` are the positions that are gone from that stage on; each holds for all later stages too.
    """

    terms: Terms
    num_sites: int
    floor: int = 2
    run_id: str = "run-1"
    vanished: Mapping[str, Collection[int]] = field(default_factory=dict)
    seen: Seen = lambda position, stage, message: None
    identities: list[Ed25519PrivateKey] = field(default_factory=list)
    states: dict[int, Any] = field(default_factory=dict)
    rounds: dict[int, Any] = field(default_factory=dict)
    receipts: dict[int, tuple[Receipt, ...]] = field(default_factory=dict)
    histories: dict[int, History] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.identities = self.identities or [Ed25519PrivateKey.generate() for _ in range(self.num_sites)]
        self.names = tuple(f"site-{number:02}" for number in range(self.num_sites))
        self.federation = Federation(
            study_hash=STUDY_HASH,
            run_id=self.run_id,
            roster_hash=ROSTER_HASH,
            identities={
                name: key.public_key().public_bytes_raw()
                for name, key in zip(self.names, self.identities, strict=True)
            },
            terms=self.terms,
        )
        self.members = [
            Membership(federation=self.federation, name=name, identity=key, floor=self.floor)
            for name, key in zip(self.names, self.identities, strict=True)
        ]
        self.histories = {position: History() for position in range(self.num_sites)}

    def there(self, stage: str) -> list[int]:
        """Positions that have not vanished before or at *stage*."""
        gone: set[int] = set()
        for name in STAGES[: STAGES.index(stage) + 1]:
            gone |= set(self.vanished.get(name, ()))
        return [position for position in range(self.num_sites) if position not in gone]

    def context(self, *, number: int = 1, first_round: int = 1) -> BatchContext:
        return BatchContext(
            federation=self.federation, number=number, first_round=first_round, cohort=self.names
        )

    # Setup, stage by stage: `advertise_of` and its like are one site's step, `advertise` and its like a whole stage.

    def advertise_of(self, position: int, request: AdvertiseRequest) -> Advertisement:
        state, reply = site_setup.advertise(
            self.members[position],
            self.histories[position],
            AdvertiseRequest.from_bytes(request.to_bytes()),
        )
        self.states[position] = state
        return Advertisement.from_bytes(self._sent(position, "advertise", reply.to_bytes()))

    def share_of(self, position: int, request: ShareRequest) -> ShareReply:
        state, reply = site_setup.share(
            self.states[position],
            ShareRequest.from_bytes(request.to_bytes(), num_sites=self.num_sites),
            randomness=os.urandom,
        )
        self.states[position] = state
        return ShareReply.from_bytes(
            self._sent(position, "share", reply.to_bytes()),
            dealer=position,
            members=state.members,
            num_rounds=self.terms.rounds_per_batch,
        )

    def escrow_of(self, position: int, request: EscrowRequest) -> EscrowReply:
        members, num_rounds = self.states[position].members, self.terms.rounds_per_batch
        state, reply = site_setup.escrow(
            self.states[position],
            EscrowRequest.from_bytes(
                request.to_bytes(), num_members=len(members), num_sites=self.num_sites, num_rounds=num_rounds
            ),
        )
        self.states[position] = state
        return EscrowReply.from_bytes(
            self._sent(position, "escrow", reply.to_bytes()), members=members, num_rounds=num_rounds
        )

    def advertise(self, context: BatchContext) -> Advertising:
        request = server_setup.advertise_request(context)
        replies = {position: self.advertise_of(position, request) for position in self.there("advertise")}
        for position, reply in replies.items():
            server_setup.check_advertisement(context, position, reply)
        return server_setup.gather_advertisements(context, replies)

    def share(self, advertising: Advertising) -> dict[int, ShareReply]:
        request = advertising.request()
        replies = {position: self.share_of(position, request) for position in self.there("share")}
        for position, reply in replies.items():
            server_setup.check_dealings(advertising, position, reply)
        return replies

    def escrow(self, advertising: Advertising, shares: dict[int, ShareReply]) -> dict[int, EscrowReply]:
        requests = server_setup.escrow_requests(advertising, shares)
        replies = {
            position: self.escrow_of(position, requests[position]) for position in self.there("escrow")
        }
        for position, reply in replies.items():
            server_setup.check_escrow(advertising, position, reply)
        return replies

    def set_up(self, *, number: int = 1, first_round: int = 1) -> Batch:
        advertising = self.advertise(self.context(number=number, first_round=first_round))
        shares = self.share(advertising)
        return server_setup.finish_setup(advertising, shares, self.escrow(advertising, shares))

    # A round, stage by stage.

    def upload(self, position: int, about: Round, request_hash: bytes, vector: Vector) -> MaskedVector:
        self.begin_of(position, about, request_hash)
        return self.mask_of(position, vector)

    def begin_of(self, position: int, about: Round, request_hash: bytes) -> None:
        ready, begun = site_round.begin(
            self.states[position],
            number=about.number,
            round_set=about.round_set,
            request_hash=request_hash,
            length=about.length,
        )
        if position in self.rounds:
            self.rounds[position].erase()
        self.states[position], self.rounds[position] = ready, begun

    def mask_of(self, position: int, vector: Vector) -> MaskedVector:
        begun = self.rounds[position]
        self.rounds[position], reply = site_round.mask(begun, vector)
        return MaskedVector.from_bytes(self._sent(position, "train", reply.to_bytes()), length=begun.length)

    def confirm_of(self, position: int, request: ConfirmRequest) -> Confirmation:
        received = ConfirmRequest.from_bytes(request.to_bytes(), num_sites=self.num_sites)
        self.rounds[position], reply = site_round.confirm(
            self.rounds[position], received, journal_head=head_of(position)
        )
        return Confirmation.from_bytes(self._sent(position, "confirm", reply.to_bytes()))

    def unmask_of(self, position: int, request: UnmaskRequest) -> UnmaskReply:
        round_set = self.rounds[position].begun.round_set
        received = UnmaskRequest.from_bytes(request.to_bytes(), num_sites=self.num_sites)
        self.rounds[position], reply, self.receipts[position] = site_round.unmask(
            self.rounds[position], received
        )
        return UnmaskReply.from_bytes(
            self._sent(position, "unmask", reply.to_bytes()), num_shares=len(round_set)
        )

    def about(
        self,
        batch: Batch,
        *,
        number: int = 1,
        length: int = 5,
        request_hash: bytes = REQUEST_HASH,
        round_set: tuple[int, ...] | None = None,
    ) -> Round:
        """What the server says that a round is about: all sites that can be in it, where nothing else is asked."""
        chosen = batch.round_set(batch.ready) if round_set is None else round_set
        return Round.of(batch, number=number, round_set=chosen, request_hash=request_hash, length=length)

    def train(
        self,
        batch: Batch,
        vectors: Mapping[int, Vector],
        *,
        number: int = 1,
        request_hash: bytes = REQUEST_HASH,
    ) -> MaskedSum:
        length = next(iter(vectors.values())).size
        about = self.about(batch, number=number, length=length, request_hash=request_hash)
        total = MaskedSum(about)
        for position in self.there("train"):
            if position in about.round_set:
                total.fold(position, self.upload(position, about, request_hash, vectors[position]))
        return total

    def confirm(self, total: MaskedSum) -> dict[int, Confirmation]:
        request = total.confirm_request()
        replies = {
            position: self.confirm_of(position, request)
            for position in self.there("confirm")
            if position in total.survivors
        }
        for position, reply in replies.items():
            total.check_confirmation(position, reply)
        return replies

    def unmask(self, total: MaskedSum, confirmations: dict[int, Confirmation]) -> Vector:
        request = total.unmask_request(confirmations)
        replies = {
            position: self.unmask_of(position, request)
            for position in self.there("unmask")
            if position in confirmations
        }
        for position, reply in replies.items():
            total.check_shares(position, reply)
        return total.unmasked(replies)

    def run_round(self, batch: Batch, vectors: Mapping[int, Vector], *, number: int = 1) -> Vector:
        total = self.train(batch, vectors, number=number)
        return self.unmask(total, self.confirm(total))

    # For tests that go several ways from one point, and for those that look at what a site still holds.

    def forked(self) -> "Consortium":
        """The same sites with copies of their states: what happens to the copies leaves the originals alone."""
        twin = copy.copy(self)
        twin.states = {position: copied(state) for position, state in self.states.items()}
        twin.rounds = {position: copied(state) for position, state in self.rounds.items()}
        twin.histories = dict(self.histories)
        return twin

    def held(self) -> dict[str, bytes | None]:
        """Every secret of every site, by the path to it; None where it is erased."""
        return {
            f"{where}[{position}]{path}": value
            for where, states in (("states", self.states), ("rounds", self.rounds))
            for position, state in states.items()
            for path, value in secrets_in(state)
        }

    @contextmanager
    def refusing(self, error: type[SecureAggregationError], match: str | None = None) -> Iterator[None]:
        """What is done in this block is refused for this reason, and no site's state or secret changes."""
        states, rounds, secrets = dict(self.states), dict(self.rounds), self.held()
        with pytest.raises(error, match=match) as refusal:
            yield
        assert refusal.type is error or error is SecureAggregationError
        assert self.held() == secrets
        assert all(self.states[position] is state for position, state in states.items())
        assert all(self.rounds[position] is state for position, state in rounds.items())

    # What a malicious site can do: sign anything in its own name, and deal what it likes.

    def signed(self, position: int, label: str, ctx: bytes, *fields: Field) -> bytes:
        return sign(self.identities[position], label, position, ctx, *fields)

    def redealt(
        self,
        advertising: Advertising,
        reply: ShareReply,
        *,
        dealer: int,
        holder: int,
        altered: Callable[[bytes], bytes],
        committed: bool = True,
    ) -> ShareReply:
        """The dealer's reply with another bundle for *holder*: sealed, committed to if so asked, and signed."""
        info = statements.bundle_info(advertising.ctx, dealer=dealer, holder=holder)
        plaintext = altered(self.states[holder].key.open(reply.dealings[holder].sealed, info))
        sealed = seal(plaintext, advertising.advertisements[holder].public_key, info)
        commitments = reply.dealings[holder].commitments
        if committed:
            shares = [plaintext[at : at + 32] for at in range(32, len(plaintext), 32)]
            kinds = (statements.SELF_SHARE, statements.ESCROW_SHARE)
            commitments = b"".join(
                commitment(
                    kinds[at % 2],
                    advertising.ctx,
                    advertising.context.rounds[at // 2],
                    dealer,
                    holder,
                    one,
                )
                for at, one in enumerate(shares)
            )
        dealings = {**reply.dealings, holder: Dealing(sealed=sealed, commitments=commitments)}
        return self.resigned_dealings(advertising, replace(reply, dealings=dealings), dealer=dealer)

    def resigned_dealings(self, advertising: Advertising, reply: ShareReply, *, dealer: int) -> ShareReply:
        signature = self.signed(
            dealer,
            statements.DEALINGS,
            advertising.ctx,
            advertising.members,
            tuple(map(statements.dealing_digest, reply.dealings.values())),
            statements.secrets_digest(reply.secret_commitments),
        )
        return replace(reply, signature=signature)

    def resigned_escrow(self, advertising: Advertising, reply: EscrowReply, *, position: int) -> EscrowReply:
        digest = statements.escrow_digest(reply)
        return replace(reply, signature=self.signed(position, statements.ESCROW, advertising.ctx, digest))

    # What a test ends with: the honest messages still give the sum.

    def finish_round(self, total: MaskedSum, vectors: Mapping[int, Vector]) -> None:
        found = self.unmask(total, self.confirm(total))
        assert np.array_equal(found, plain_sum(vectors, total.survivors))

    def finish_setup(self, advertising: Advertising) -> Batch:
        """From after the advertisements to the sum of the batch's first round."""
        shares = self.share(advertising)
        batch = server_setup.finish_setup(advertising, shares, self.escrow(advertising, shares))
        vectors = random_vectors(self.num_sites, 5)
        self.finish_round(self.train(batch, vectors, number=batch.context.first_round), vectors)
        return batch

    def _sent(self, position: int, stage: str, message: bytes) -> bytes:
        self.seen(position, stage, message)
        return message


def make_terms(
    num_sites: int, *, threshold: int, min_cohort: int = 2, num_colluding: int = 0, rounds_per_batch: int = 2
) -> Terms:
    """Terms for at most *num_sites*."""
    return Terms(
        num_sites_max=num_sites,
        threshold=threshold,
        min_cohort=min_cohort,
        num_colluding=num_colluding,
        rounds_per_batch=rounds_per_batch,
    )


def random_vectors(num_sites: int, length: int, *, seed: int = 0) -> dict[int, Vector]:
    """One vector a site, entries over the whole range of uint32."""
    generator = np.random.default_rng(seed)
    return {
        site: generator.integers(0, 2**32, length, dtype=np.uint64).astype(np.uint32)
        for site in range(num_sites)
    }


def plain_sum(vectors: Mapping[int, Vector], sites: Collection[int]) -> Vector:
    """What the protocol must give: the sum modulo 2^32."""
    total = np.zeros_like(next(iter(vectors.values())))
    for site in sites:
        total += vectors[site]
    return total


def copied(value: Any) -> Any:
    """Return a copy of a site's state whose secrets are erased on their own. (A Secret itself forbids copies.)"""
    if isinstance(value, Secret):
        twin = Secret(b"" if value.erased else value.value)
        if value.erased:
            twin.erase()
        return twin
    if isinstance(value, SealingKey):
        return copy.copy(value)
    if isinstance(value, dict):
        return {key: copied(entry) for key, entry in value.items()}
    if is_dataclass(value) and hasattr(value, "erase"):
        return replace(value, **{entry.name: copied(getattr(value, entry.name)) for entry in fields(value)})
    return value


def secrets_in(value: Any, path: str = "") -> Iterator[tuple[str, bytes | None]]:
    """Yield the path and the bytes of every secret that a state holds; None for bytes where they are erased."""
    if isinstance(value, Secret):
        yield path, None if value.erased else value.value
    elif isinstance(value, SealingKey):
        yield path, None if value._private is None else value.public
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from secrets_in(entry, f"{path}[{key}]")
    elif is_dataclass(value) and hasattr(value, "erase"):
        for entry in fields(value):
            yield from secrets_in(getattr(value, entry.name), f"{path}.{entry.name}")
