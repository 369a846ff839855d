"""Secure aggregation in memory: every site and the server in one process, every message passed as bytes.

`Consortium` runs the real steps of both halves. A test decides who vanishes when, and may put itself in the place of
the server or of a site between any two steps.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.secure_aggregation import server_setup, site_round, site_setup
from privacy.secure_aggregation.context import BatchContext, Federation
from privacy.secure_aggregation.masks import Vector
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


@dataclass
class Consortium:
    """Sites ``site-00`` … of one run, their states, and an honest server.

    ``vanished[stage]`` are the positions that are gone from that stage on; each holds for all later stages too.
    """

    terms: Terms
    num_sites: int
    floor: int = 2
    run_id: str = "run-1"
    vanished: Mapping[str, Collection[int]] = field(default_factory=dict)
    seen: Seen = lambda position, stage, message: None
    identities: list[Ed25519PrivateKey] = field(default_factory=list)
    states: dict[int, object] = field(default_factory=dict)
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

    # Setup, stage by stage.

    def advertise(self, context: BatchContext) -> Advertising:
        request = server_setup.advertise_request(context).to_bytes()
        replies = {}
        for position in self.there("advertise"):
            state, sent = site_setup.advertise(
                self.members[position], self.histories[position], AdvertiseRequest.from_bytes(request)
            )
            self.states[position] = state
            replies[position] = Advertisement.from_bytes(self._sent(position, "advertise", sent.to_bytes()))
            server_setup.check_advertisement(context, position, replies[position])
        return server_setup.gather_advertisements(context, replies)

    def share(self, advertising: Advertising) -> dict[int, ShareReply]:
        request = advertising.request().to_bytes()
        replies = {}
        for position in self.there("share"):
            state, reply = site_setup.share(
                self.states[position],
                ShareRequest.from_bytes(request, num_sites=self.num_sites),
                randomness=os.urandom,
            )
            self.states[position] = state
            replies[position] = ShareReply.from_bytes(
                self._sent(position, "share", reply.to_bytes()),
                dealer=position,
                members=advertising.members,
                num_rounds=self.terms.rounds_per_batch,
            )
            server_setup.check_dealings(advertising, position, replies[position])
        return replies

    def escrow(self, advertising: Advertising, shares: dict[int, ShareReply]) -> dict[int, EscrowReply]:
        requests = server_setup.escrow_requests(advertising, shares)
        return {
            position: self.escrow_of(position, advertising, requests[position])
            for position in self.there("escrow")
        }

    def escrow_of(self, position: int, advertising: Advertising, request: EscrowRequest) -> EscrowReply:
        num_members, num_rounds = len(advertising.members), self.terms.rounds_per_batch
        state, reply = site_setup.escrow(
            self.states[position],
            EscrowRequest.from_bytes(
                request.to_bytes(), num_members=num_members, num_sites=self.num_sites, num_rounds=num_rounds
            ),
        )
        self.states[position] = state
        received = EscrowReply.from_bytes(
            self._sent(position, "escrow", reply.to_bytes()),
            members=advertising.members,
            num_rounds=num_rounds,
        )
        server_setup.check_escrow(advertising, position, received)
        return received

    def set_up(self, *, number: int = 1, first_round: int = 1) -> Batch:
        advertising = self.advertise(self.context(number=number, first_round=first_round))
        shares = self.share(advertising)
        return server_setup.finish_setup(advertising, shares, self.escrow(advertising, shares))

    # A round, stage by stage.

    def train(
        self,
        batch: Batch,
        vectors: Mapping[int, Vector],
        *,
        number: int = 1,
        request_hash: bytes = REQUEST_HASH,
    ) -> MaskedSum:
        round_set = batch.round_set(batch.ready)
        length = next(iter(vectors.values())).size
        about = Round.of(batch, number=number, round_set=round_set, request_hash=request_hash, length=length)
        total = MaskedSum(about)
        for position in self.there("train"):
            if position in round_set:
                reply = self.upload(position, about, request_hash, vectors[position])
                total.fold(position, reply)
        return total

    def upload(self, position: int, about: Round, request_hash: bytes, vector: Vector) -> MaskedVector:
        ready, begun = site_round.begin(
            self.states[position],
            number=about.number,
            round_set=about.round_set,
            request_hash=request_hash,
            length=about.length,
        )
        self.states[position] = ready
        uploaded, reply = site_round.mask(begun, vector)
        self.rounds[position] = uploaded
        message = self._sent(position, "train", reply.to_bytes())
        return MaskedVector.from_bytes(message, length=about.length)

    def confirm(self, total: MaskedSum) -> dict[int, Confirmation]:
        request = total.confirm_request().to_bytes()
        replies = {}
        for position in self.there("confirm"):
            if position in total.survivors:
                state, reply = site_round.confirm(
                    self.rounds[position], ConfirmRequest.from_bytes(request, num_sites=self.num_sites)
                )
                self.rounds[position] = state
                replies[position] = Confirmation.from_bytes(self._sent(position, "confirm", reply.to_bytes()))
                total.check_confirmation(position, replies[position])
        return replies

    def unmask(self, total: MaskedSum, confirmations: dict[int, Confirmation]) -> Vector:
        request = total.unmask_request(confirmations).to_bytes()
        replies = {}
        for position in self.there("unmask"):
            if position in confirmations:
                state, reply = site_round.unmask(
                    self.rounds[position], UnmaskRequest.from_bytes(request, num_sites=self.num_sites)
                )
                self.rounds[position] = state
                replies[position] = UnmaskReply.from_bytes(
                    self._sent(position, "unmask", reply.to_bytes()), num_shares=len(total.about.round_set)
                )
                total.check_shares(position, replies[position])
        return total.unmasked(replies)

    def run_round(self, batch: Batch, vectors: Mapping[int, Vector], *, number: int = 1) -> Vector:
        total = self.train(batch, vectors, number=number)
        return self.unmask(total, self.confirm(total))

    rounds: dict[int, object] = field(default_factory=dict)

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
