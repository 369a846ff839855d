"""The server's half of a batch's setup: relay what sites say, keep what a round will need, and find who goes together.

The server holds no secret. It checks everything that it can, so that a mistake is found before a round depends on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from privacy.secure_aggregation import statements
from privacy.secure_aggregation.context import HASH_BYTES, BatchContext, Federation
from privacy.secure_aggregation.encoding import Reader, Writer, digest
from privacy.secure_aggregation.messages import (
    Advertisement,
    AdvertiseRequest,
    EscrowReply,
    EscrowRequest,
    ReceivedDealing,
    ShareReply,
    ShareRequest,
)
from privacy.secure_aggregation.refusals import DuplicateKey, Malformed, TooFewSites
from privacy.secure_aggregation.sealing import read_public_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertising:
    """The sites whose advertisements are good; ``ctx`` is the batch's context from here on."""

    context: BatchContext
    advertisements: Mapping[int, Advertisement]
    ctx: bytes

    @property
    def members(self) -> tuple[int, ...]:
        """Their positions, increasing."""
        return tuple(self.advertisements)

    def request(self) -> ShareRequest:
        """What every member is asked next."""
        return ShareRequest(advertisements=dict(self.advertisements))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What rounds need: who accepted whom, the commitments, and the sealed escrows, by position."""

    context: BatchContext
    ctx: bytes
    members: tuple[int, ...]
    shares: Mapping[int, ShareReply]
    escrows: Mapping[int, EscrowReply]

    advertisements: Mapping[int, Advertisement]

    def to_bytes(self) -> bytes:
        """As bytes, for a server that is started again."""
        writer = Writer()
        for part in (
            advertise_request(self.context).to_bytes(),
            ShareRequest(advertisements=dict(self.advertisements)).to_bytes(),
        ):
            writer.number(len(part))
            writer.fixed(part)
        for replies in (self.shares, self.escrows):
            writer.number(len(replies))
            for position, reply in replies.items():
                part = reply.to_bytes()
                writer.number(position)
                writer.number(len(part))
                writer.fixed(part)
        return writer.result()

    @classmethod
    def from_bytes(cls, message: bytes, federation: Federation) -> "Batch":
        """Read what `to_bytes` wrote. Raises SecureAggregationError: damaged, or of another run."""
        reader = Reader(message, "batch")
        request = AdvertiseRequest.from_bytes(reader.fixed(reader.number()))
        context = BatchContext(
            federation=federation,
            number=request.number,
            first_round=request.first_round,
            cohort=request.cohort,
        )
        shared = ShareRequest.from_bytes(reader.fixed(reader.number()), num_sites=len(request.cohort))
        advertising = gather_advertisements(context, shared.advertisements)
        members, num_rounds = advertising.members, len(context.rounds)
        shares, escrows = dict[int, ShareReply](), dict[int, EscrowReply]()
        for _ in range(reader.number(most=len(members))):
            position, part = reader.number(), reader.fixed(reader.number())
            if position not in members:
                raise Malformed(f"batch: shares of position {position}, which advertised nothing")
            shares[position] = ShareReply.from_bytes(
                part, dealer=position, members=members, num_rounds=num_rounds
            )
            check_dealings(advertising, position, shares[position])
        for _ in range(reader.number(most=len(members))):
            position, part = reader.number(), reader.fixed(reader.number())
            if position not in shares:
                raise Malformed(f"batch: an escrow of position {position}, which dealt no shares")
            escrows[position] = EscrowReply.from_bytes(part, members=members, num_rounds=num_rounds)
            check_escrow(advertising, position, escrows[position])
        reader.end()
        return finish_setup(advertising, shares, escrows)

    @property
    def ready(self) -> tuple[str, ...]:
        """Names of the sites that went through the whole setup."""
        return tuple(self.context.cohort[position] for position in self.escrows)

    def round_set(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return the positions of those *names* that can be in one round: each accepts each, pair by pair.

        Who has the most disagreements is left out first; between equals a hash decides, so that nobody can aim.
        """
        chosen = [position for position in self.escrows if self.context.cohort[position] in set(names)]
        while True:
            conflicts = {site: sum(not self._agree(site, other) for other in chosen) for site in chosen}
            worst = max(
                conflicts,
                key=lambda site: (conflicts[site], digest("tie", self.ctx, site)),
                default=None,
            )
            if worst is None or conflicts[worst] == 0:
                return tuple(chosen)
            chosen.remove(worst)

    def _agree(self, one: int, other: int) -> bool:
        """Whether both accepted each other and committed to the same pair seeds."""
        if one == other:
            return True
        return (
            other in self.escrows[one].accepted
            and one in self.escrows[other].accepted
            and self._pair_commitments(one, other) == self._pair_commitments(other, one)
        )

    def _pair_commitments(self, owner: int, peer: int) -> list[bytes]:
        return [self.pair_commitment(owner=owner, peer=peer, number=number) for number in self.context.rounds]

    def pair_commitment(self, *, owner: int, peer: int, number: int) -> bytes:
        """The commitment of *owner* to its pair seed with *peer* for a round."""
        row = self.context.rounds.index(number) * len(self.members) + self.members.index(peer)
        return self.escrows[owner].commitments[row * HASH_BYTES : (row + 1) * HASH_BYTES]


def advertise_request(context: BatchContext) -> AdvertiseRequest:
    """What every site of the cohort is asked first."""
    return AdvertiseRequest(
        number=context.number,
        first_round=context.first_round,
        roster_hash=context.federation.roster_hash,
        cohort=context.cohort,
    )


def check_advertisement(context: BatchContext, position: int, reply: Advertisement) -> None:
    """Raises BadSignature or Malformed where the advertisement is not the site's own."""
    context.check_signature(
        reply.signature, statements.ADVERTISEMENT, position, context.digest, reply.public_key
    )
    read_public_key(reply.public_key)


def with_shared_keys(replies: Mapping[int, Advertisement]) -> set[int]:
    """Positions of all sites whose sealing key another one advertises too: nobody can tell whose it is."""
    owners: dict[bytes, list[int]] = {}
    for position, reply in replies.items():
        owners.setdefault(reply.public_key, []).append(position)
    return {position for sharing in owners.values() if len(sharing) > 1 for position in sharing}


def gather_advertisements(context: BatchContext, replies: Mapping[int, Advertisement]) -> Advertising:
    """Put checked advertisements together, in whatever order they arrived.

    Raises:
        DuplicateKey: two sites sent the same key.
        TooFewSites: too few sites answered.
    """
    ordered = {position: replies[position] for position in sorted(replies)}
    if with_shared_keys(ordered):
        raise DuplicateKey("two sites advertise the same sealing key")
    _enough(context, len(ordered), "advertised")
    return Advertising(context=context, advertisements=ordered, ctx=statements.full_context(context, ordered))


def check_dealings(advertising: Advertising, position: int, reply: ShareReply) -> None:
    """Raises BadSignature where the dealings are not what the site signed."""
    advertising.context.check_signature(
        reply.signature,
        statements.DEALINGS,
        position,
        advertising.ctx,
        advertising.members,
        tuple(map(statements.dealing_digest, reply.dealings.values())),
        statements.secrets_digest(reply.secret_commitments),
    )


def escrow_requests(advertising: Advertising, replies: Mapping[int, ShareReply]) -> dict[int, EscrowRequest]:
    """What each site that dealt is asked next: the dealings that are addressed to it. Raises TooFewSites."""
    _enough(advertising.context, len(replies), "dealt their shares")
    summaries = {
        dealer: (
            tuple(map(statements.dealing_digest, reply.dealings.values())),
            statements.secrets_digest(reply.secret_commitments),
        )
        for dealer, reply in sorted(replies.items())
    }
    return {
        holder: EscrowRequest(
            received={
                dealer: ReceivedDealing(
                    dealing=replies[dealer].dealings[holder],
                    digests=digests,
                    secrets_digest=secrets,
                    signature=replies[dealer].signature,
                )
                for dealer, (digests, secrets) in summaries.items()
                if dealer != holder
            }
        )
        for holder in sorted(replies)
    }


def check_escrow(advertising: Advertising, position: int, reply: EscrowReply) -> None:
    """Raises BadSignature where the escrow is not what the site signed."""
    advertising.context.check_signature(
        reply.signature, statements.ESCROW, position, advertising.ctx, statements.escrow_digest(reply)
    )


def finish_setup(
    advertising: Advertising, shares: Mapping[int, ShareReply], escrows: Mapping[int, EscrowReply]
) -> Batch:
    """Return the batch. Raises TooFewSites where no round could come of it."""
    batch = Batch(
        context=advertising.context,
        ctx=advertising.ctx,
        members=advertising.members,
        shares={position: shares[position] for position in sorted(shares)},
        escrows={position: escrows[position] for position in sorted(escrows)},
        advertisements=advertising.advertisements,
    )
    _enough(advertising.context, len(batch.round_set(batch.ready)), "accept each other")
    return batch


def _enough(context: BatchContext, number: int, what: str) -> None:
    if number < context.terms.least:
        raise TooFewSites(
            f"{number} of {len(context.cohort)} sites {what}; the study wants {context.terms.least}"
        )
