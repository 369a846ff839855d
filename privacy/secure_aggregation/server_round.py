"""The server's half of a round: one running sum, the survivors, and what opens the sum, but no single vector.

Memory is one vector, whatever the number of sites. The server folds each masked vector as it arrives and forgets it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from privacy.secure_aggregation import statements
from privacy.secure_aggregation.context import HASH_BYTES, commitment
from privacy.secure_aggregation.masks import Vector, add_mask, subtract_mask
from privacy.secure_aggregation.messages import (
    Confirmation,
    ConfirmRequest,
    MaskedVector,
    Survivor,
    UnmaskReply,
    UnmaskRequest,
)
from privacy.secure_aggregation.receipts import Receipt
from privacy.secure_aggregation.refusals import (
    BadDealer,
    BadEscrow,
    BadHolder,
    Malformed,
    Replayed,
    RoundSetRefused,
    SentinelDiffers,
    TooFewConfirmations,
    TooFewSites,
)
from privacy.secure_aggregation.sealing import open_escrow
from privacy.secure_aggregation.server_setup import Batch
from privacy.secure_aggregation.shamir import ELEMENT_BYTES, combine, element_bytes, lagrange, read_element


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round is about: constant while it lasts."""

    batch: Batch
    number: int
    round_set: tuple[int, ...]
    length: int
    round_ctx: bytes

    @classmethod
    def of(
        cls, batch: Batch, *, number: int, round_set: tuple[int, ...], request_hash: bytes, length: int
    ) -> "Round":
        """The round that begins with the request of this hash, for vectors of this length."""
        round_ctx = statements.round_digest(
            batch.ctx, number=number, request_hash=request_hash, round_set=round_set, length=length
        )
        return cls(batch=batch, number=number, round_set=round_set, length=length, round_ctx=round_ctx)

    def name(self, position: int) -> str:
        """Of the site."""
        return self.batch.context.cohort[position]


class MaskedSum:
    """The sum of masked vectors modulo 2^32, and who is in it.

    Args:
        about: the round.
        total: what was summed before the server was started again; it is changed in place.
        survivors: who is in *total*.
    """

    def __init__(
        self, about: Round, *, total: Vector | None = None, survivors: Mapping[int, Survivor] | None = None
    ) -> None:
        self.about = about
        self.total: Vector = np.zeros(about.length + 1, dtype=np.uint32) if total is None else total
        self._survivors: dict[int, Survivor] = dict(survivors or {})
        self._closed = survivors is not None
        self._opened = False

    def fold(self, position: int, reply: MaskedVector) -> None:
        """Add one site's vector.

        Raises:
            RoundSetRefused, Replayed, BadSignature, Malformed: it is not added, and the sum stays as it was.
        """
        if position not in self.about.round_set:
            raise RoundSetRefused(f"{self.about.name(position)} is not in the round set")
        if self._closed:
            raise Replayed("the survivors are fixed; a vector that is late is thrown away")
        if position in self._survivors:
            raise Replayed(f"{self.about.name(position)} is in the sum already")
        if reply.vector.shape != self.total.shape:
            raise Malformed(f"masked vector: shape {reply.vector.shape}, {self.total.shape} expected")
        vector_hash = statements.vector_hash(reply.vector.astype("<u4", copy=False).tobytes())
        self.about.batch.context.check_signature(
            reply.signature, statements.VECTOR, position, self.about.round_ctx, vector_hash
        )
        np.add(self.total, reply.vector, out=self.total)
        self._survivors[position] = Survivor(vector_hash=vector_hash, signature=reply.signature)

    @property
    def survivors(self) -> dict[int, Survivor]:
        """Who is in the sum, by increasing position."""
        return {position: self._survivors[position] for position in sorted(self._survivors)}

    def confirm_request(self) -> ConfirmRequest:
        """What all survivors are asked. From here on no vector is folded any more. Raises TooFewSites."""
        least = self.about.batch.context.terms.least
        if len(self._survivors) < least:
            raise TooFewSites(
                f"{len(self._survivors)} of {len(self.about.round_set)} sites sent a vector; "
                f"the study wants {least}"
            )
        self._closed = True
        return ConfirmRequest(survivors=self.survivors)

    def check_confirmation(self, position: int, reply: Confirmation) -> None:
        """Raises BadSignature where the site signed something else."""
        self.about.batch.context.check_signature(
            reply.signature,
            statements.CONFIRMATION,
            position,
            self.about.round_ctx,
            statements.survivors_digest(self.survivors),
            reply.journal_head,
        )

    def receipt(self, position: int, reply: Confirmation) -> Receipt:
        """The confirmation of one site with all that its signature covers, to be kept."""
        return Receipt(
            site=self.about.name(position),
            run_id=self.about.batch.context.federation.run_id,
            round=self.about.number,
            position=position,
            round_ctx=self.about.round_ctx,
            survivors=statements.survivors_digest(self.survivors),
            journal_head=reply.journal_head,
            signature=reply.signature,
        )

    def unmask_request(self, confirmations: Mapping[int, Confirmation]) -> UnmaskRequest:
        """What those that confirmed are asked. Raises TooFewConfirmations."""
        threshold = self.about.batch.context.terms.threshold
        if len(confirmations) < threshold:
            raise TooFewConfirmations(
                f"{len(confirmations)} of {len(self._survivors)} survivors confirmed; the threshold is {threshold}"
            )
        return UnmaskRequest(confirmations={site: confirmations[site] for site in sorted(confirmations)})

    def check_shares(self, position: int, reply: UnmaskReply) -> None:
        """Check one holder's shares against what their dealers committed to. Raises BadHolder, Malformed."""
        about = self.about
        for dealer, one in zip(about.round_set, reply.shares, strict=True):
            read_element(one)
            survived = dealer in self._survivors
            kind = statements.SELF_SHARE if survived else statements.ESCROW_SHARE
            made = commitment(kind, about.batch.ctx, about.number, dealer, position, one)
            if made != self._committed_share(dealer, position, escrow=not survived):
                raise BadHolder(
                    f"the share that {about.name(position)} gave of {about.name(dealer)} is not the one that it "
                    "accepted",
                    (position,),
                )

    def unmasked(self, replies: Mapping[int, UnmaskReply]) -> Vector:
        """Take the masks off and return the sum, uint32, shape (length,), without the sentinel. Once only.

        Args:
            replies: whose shares `check_shares` found good, by holder.

        Raises:
            TooFewConfirmations: fewer holders than the threshold.
            BadDealer, BadEscrow, SentinelDiffers: the round ends without a sum.
            Replayed: the masks were taken off already, in place.
        """
        threshold = self.about.batch.context.terms.threshold
        if len(replies) < threshold:
            raise TooFewConfirmations(f"{len(replies)} sites gave shares; the threshold is {threshold}")
        holders = sorted(replies)[:threshold]
        coefficients = lagrange(holders)
        added, subtracted = list[bytes](), list[bytes]()
        for index, dealer in enumerate(self.about.round_set):
            shares = [read_element(replies[holder].shares[index]) for holder in holders]
            secret = self._secret(dealer, combine(coefficients, shares))
            if dealer in self._survivors:
                added.append(statements.self_mask_key(secret, self.about.round_ctx, position=dealer))
                continue
            for survivor, key in self._pair_keys(dealer, secret):
                (added if survivor < dealer else subtracted).append(key)
        if self._opened:
            raise Replayed("the sum was opened already")
        self._opened = True
        for key in added:
            subtract_mask(self.total, key)
        for key in subtracted:
            add_mask(self.total, key)
        if int(self.total[-1]) != len(self._survivors):
            raise SentinelDiffers("the sum does not count its survivors: masks were left in it")
        return self.total[:-1]

    def _secret(self, dealer: int, secret: int) -> bytes:
        about = self.about
        survived = dealer in self._survivors
        kind = statements.SELF_SECRET if survived else statements.ESCROW_SECRET
        row = 2 * about.batch.context.rounds.index(about.number) + (not survived)
        committed = about.batch.shares[dealer].secret_commitments[row * HASH_BYTES : (row + 1) * HASH_BYTES]
        value = element_bytes(secret)
        if commitment(kind, about.batch.ctx, about.number, dealer, dealer, value) != committed:
            raise BadDealer(
                f"the shares that {about.name(dealer)} dealt do not give the secret that it committed to",
                (dealer,),
            )
        return value

    def _pair_keys(self, vanished: int, secret: bytes) -> Iterator[tuple[int, bytes]]:
        """Each survivor, and the key of the mask that it shares with a vanished site, from that site's escrow."""
        about, batch = self.about, self.about.batch
        key = statements.escrow_key(secret, batch.ctx, position=vanished, number=about.number)
        try:
            seeds = open_escrow(
                batch.escrows[vanished].escrows[batch.context.rounds.index(about.number)], key
            )
        except Malformed as error:
            raise BadEscrow(f"the escrow of {about.name(vanished)} does not open", (vanished,)) from error
        for survivor in self._survivors:
            at = batch.members.index(survivor) * ELEMENT_BYTES
            seed = seeds[at : at + ELEMENT_BYTES]
            low, high = min(vanished, survivor), max(vanished, survivor)
            made = commitment(statements.PAIR_SEED, batch.ctx, about.number, low, high, seed)
            if made != batch.pair_commitment(owner=vanished, peer=survivor, number=about.number):
                raise BadEscrow(
                    f"the escrow of {about.name(vanished)} does not hold what it committed to", (vanished,)
                )
            yield survivor, statements.pair_mask_key(seed, about.round_ctx, low=low, high=high)

    def _committed_share(self, dealer: int, holder: int, *, escrow: bool) -> bytes:
        row = 2 * self.about.batch.context.rounds.index(self.about.number) + escrow
        commitments = self.about.batch.shares[dealer].dealings[holder].commitments
        return commitments[row * HASH_BYTES : (row + 1) * HASH_BYTES]
