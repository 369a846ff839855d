"""A site's half of a batch's setup: advertise, share, escrow.

Each step takes the state in which it is legal and returns the next state and one message. All checks come first; a
step that raises has changed nothing, and its state can still go on. The numbers in comments are those of
docs/secure-aggregation.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.secure_aggregation import statements
from privacy.secure_aggregation.context import HASH_BYTES, BatchContext, Federation, commitment, sign
from privacy.secure_aggregation.messages import (
    CONTRIBUTION_BYTES,
    Advertisement,
    AdvertiseRequest,
    Dealing,
    EscrowReply,
    EscrowRequest,
    ReceivedDealing,
    ShareReply,
    ShareRequest,
)
from privacy.secure_aggregation.refusals import (
    BadSignature,
    CohortRefused,
    DuplicateKey,
    Malformed,
    OwnMessageChanged,
    Replayed,
    RosterDiffers,
    TooFewSites,
)
from privacy.secure_aggregation.sealing import SealingKey, read_public_key, seal, seal_escrow
from privacy.secure_aggregation.secret import Secret, erase_all
from privacy.secure_aggregation.shamir import (
    ELEMENT_BYTES,
    Randomness,
    element_bytes,
    random_element,
    read_element,
    split,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Who the site is, for all batches of a run.

    Attributes:
        federation: what all sites have in common, as this site knows it.
        name: of the site, as in the roster.
        identity: its private identity key.
        floor: the site's own least number of sites in a sum. The study must promise as many: what opens a sum is
            agreed by all, so that one site's wish alone would not keep the others from opening a smaller one.
    """

    federation: Federation
    name: str
    identity: Ed25519PrivateKey
    floor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What the site remembers over the batches of a run: both numbers only ever grow."""

    last_batch: int = 0
    last_round: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """The site's place in one batch."""

    membership: Membership
    context: BatchContext
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertised:
    """After the first step."""

    seat: Seat
    key: SealingKey
    sent: Advertisement

    def erase(self) -> None:
        """Forget the secrets of this state."""
        self.key.erase()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSecrets:
    """What the site keeps of one round until it is over.

    Attributes:
        self_seed: its own b; erased once the masked vector is formed.
        pair_seeds: by peer; erased once the masked vector is formed.
        self_shares: its share of b of each dealer, itself included.
        escrow_shares: its share of e of each dealer, itself included.
    """

    self_seed: Secret
    pair_seeds: Mapping[int, Secret]
    self_shares: Mapping[int, Secret]
    escrow_shares: Mapping[int, Secret]

    def erase_seeds(self) -> None:
        """Forget what masks were made of."""
        erase_all((self.self_seed, *self.pair_seeds.values()))

    def erase(self) -> None:
        """Forget everything."""
        self.erase_seeds()
        erase_all((*self.self_shares.values(), *self.escrow_shares.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSecrets:
    """b and e of one round and the dealer's own shares of them."""

    self_seed: Secret
    escrow: Secret
    self_share: Secret
    escrow_share: Secret

    def erase(self) -> None:
        """Forget all of them."""
        erase_all((self.self_seed, self.escrow, self.self_share, self.escrow_share))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """After the second step.

    Attributes:
        ctx: context of the batch, advertisements included.
        members: positions that advertised, increasing.
        contributions: that this site dealt, by peer.
        own: b and e of each round.
    """

    seat: Seat
    key: SealingKey
    ctx: bytes
    members: tuple[int, ...]
    contributions: Mapping[int, Secret]
    own: Mapping[int, OwnSecrets]

    def erase(self) -> None:
        """Forget the secrets of this state."""
        self.key.erase()
        erase_all(self.contributions.values())
        for secrets in self.own.values():
            secrets.erase()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """After the third step: the batch's rounds can begin.

    Attributes:
        accepted: peers whose bundles were good.
        rounds: secrets by round number; a round that begins leaves it.
    """

    seat: Seat
    ctx: bytes
    accepted: frozenset[int]
    rounds: Mapping[int, RoundSecrets]

    def erase(self) -> None:
        """Forget the secrets of all rounds."""
        for secrets in self.rounds.values():
            secrets.erase()


def advertise(
    membership: Membership, history: History, request: AdvertiseRequest
) -> tuple[Advertised, Advertisement]:
    """Step 1: check the batch and make a fresh sealing key.

    Raises:
        Replayed: the batch or its rounds are not later than the last.
        RosterDiffers, CohortRefused, TermsRefused, TooFewSites: the cohort is not one that the site agreed to.
    """
    federation = membership.federation
    if request.number <= history.last_batch or request.first_round <= history.last_round:
        raise Replayed(
            f"batch {request.number} from round {request.first_round} is asked for after batch "
            f"{history.last_batch} and round {history.last_round}"
        )
    if request.roster_hash != federation.roster_hash:
        raise RosterDiffers(
            "the server works with another version of the roster; get the newest from the coordinator and join again"
        )
    context = BatchContext(
        federation=federation,
        number=request.number,
        first_round=request.first_round,
        cohort=request.cohort,
    )
    if membership.floor > federation.terms.least:
        raise TooFewSites(
            f"sums of {federation.terms.least} sites can be opened, this site wants {membership.floor} at least"
        )
    if membership.name not in request.cohort:
        raise CohortRefused("this site is not in the cohort")
    seat = Seat(membership=membership, context=context, position=request.cohort.index(membership.name))

    key = SealingKey()
    signature = sign(membership.identity, statements.ADVERTISEMENT, seat.position, context.digest, key.public)
    sent = Advertisement(public_key=key.public, signature=signature)
    return Advertised(seat=seat, key=key, sent=sent), sent


def share(state: Advertised, request: ShareRequest, *, randomness: Randomness) -> tuple[Shared, ShareReply]:
    """Step 2: check all advertisements, draw the secrets of each round, deal them to all members.

    Raises:
        OwnMessageChanged, BadSignature, DuplicateKey, Malformed, TooFewSites: by what is wrong with the
            advertisements.
    """
    seat, terms = state.seat, state.seat.context.terms
    _check_advertisements(state, request)

    members = tuple(request.advertisements)
    ctx = statements.full_context(seat.context, request.advertisements)
    peers = [member for member in members if member != seat.position]
    contributions = {peer: Secret(randomness(CONTRIBUTION_BYTES)) for peer in peers}
    bundles = {member: bytearray() for member in members}
    commitments = {member: bytearray() for member in members}
    secret_commitments = bytearray()
    own = {}
    for number in seat.context.rounds:
        drawn = []
        for kind, secret_kind in (
            (statements.SELF_SHARE, statements.SELF_SECRET),
            (statements.ESCROW_SHARE, statements.ESCROW_SECRET),
        ):
            secret = random_element(randomness)
            shares = split(secret, threshold=terms.threshold, positions=members, randomness=randomness)
            raw = dict(zip(members, map(element_bytes, shares), strict=True))
            for member, one in raw.items():
                bundles[member] += one
                commitments[member] += commitment(kind, ctx, number, seat.position, member, one)
            value = element_bytes(secret)
            secret_commitments += commitment(secret_kind, ctx, number, seat.position, seat.position, value)
            drawn.append((Secret(value), Secret(raw[seat.position])))
        (self_seed, self_share), (escrow, escrow_share) = drawn
        own[number] = OwnSecrets(
            self_seed=self_seed, escrow=escrow, self_share=self_share, escrow_share=escrow_share
        )

    dealings = {}
    for member in members:
        sealed = b""
        if member != seat.position:
            info = statements.bundle_info(ctx, dealer=seat.position, holder=member)
            plaintext = contributions[member].value + bytes(bundles[member])
            sealed = seal(plaintext, request.advertisements[member].public_key, info)
        dealings[member] = Dealing(sealed=sealed, commitments=bytes(commitments[member]))
        bundles[member][:] = bytes(len(bundles[member]))
    signature = sign(
        seat.membership.identity,
        statements.DEALINGS,
        seat.position,
        ctx,
        members,
        tuple(map(statements.dealing_digest, dealings.values())),
        statements.secrets_digest(bytes(secret_commitments)),
    )
    reply = ShareReply(dealings=dealings, secret_commitments=bytes(secret_commitments), signature=signature)
    return Shared(
        seat=seat, key=state.key, ctx=ctx, members=members, contributions=contributions, own=own
    ), reply


def _check_advertisements(state: Advertised, request: ShareRequest) -> None:
    seat = state.seat
    if request.advertisements.get(seat.position) != state.sent:
        raise OwnMessageChanged("this site's own advertisement came back altered, or not at all")
    if len(request.advertisements) < seat.context.terms.least:
        raise TooFewSites(
            f"{len(request.advertisements)} sites advertised, the study wants {seat.context.terms.least}"
        )
    keys = [entry.public_key for entry in request.advertisements.values()]
    if len(set(keys)) != len(keys):
        raise DuplicateKey("two sites advertise the same sealing key")
    for position, entry in request.advertisements.items():
        seat.context.check_signature(
            entry.signature, statements.ADVERTISEMENT, position, seat.context.digest, entry.public_key
        )
        read_public_key(entry.public_key)


def escrow(state: Shared, request: EscrowRequest) -> tuple[Ready, EscrowReply]:
    """Step 3: open the bundles, derive the pair seeds, seal them under each round's e, forget e.

    A bundle that is missing or bad does not fail the step: its dealer is not accepted, and this site will not be in
    a round set with it. What opens bundles and escrows is erased before the reply is returned.

    Raises:
        Malformed: a dealer that is this site, or that advertised nothing.
        TooFewSites: too few dealers are accepted.
    """
    seat, me = state.seat, state.seat.position
    if not set(request.received) <= set(state.members) - {me}:
        raise Malformed("escrow request: a dealing of a site that is no peer in this batch")
    opened: dict[int, bytes] = {}
    for dealer, received in request.received.items():
        try:
            opened[dealer] = _open_bundle(state, dealer, received)
        except (BadSignature, Malformed):
            continue  # the complaint: this dealer is missing among the accepted
    if 1 + len(opened) < seat.context.terms.least:
        raise TooFewSites(
            f"the bundles of {len(opened)} peers are good; the study wants {seat.context.terms.least - 1}"
        )

    rounds, escrows, commitments = {}, [], bytearray()
    for index, number in enumerate(seat.context.rounds):
        own = state.own[number]
        seeds: dict[int, bytes] = {}
        for peer, plaintext in opened.items():
            low, high = min(me, peer), max(me, peer)
            both = (state.contributions[peer].value, plaintext[:CONTRIBUTION_BYTES])
            ordered = both if me == low else (both[1], both[0])
            seeds[peer] = statements.pair_seed(ordered, state.ctx, low=low, high=high, number=number)
        slots = b"".join(seeds.get(member, bytes(ELEMENT_BYTES)) for member in state.members)
        key = statements.escrow_key(own.escrow.value, state.ctx, position=me, number=number)
        escrows.append(seal_escrow(slots, key))
        for member in state.members:
            if member in seeds:
                low, high = min(me, member), max(me, member)
                kind = statements.PAIR_SEED
                commitments += commitment(kind, state.ctx, number, low, high, seeds[member])
            else:
                commitments += bytes(HASH_BYTES)
        shares = {dealer: _shares(plaintext, index) for dealer, plaintext in opened.items()}
        rounds[number] = RoundSecrets(
            self_seed=own.self_seed,
            pair_seeds={peer: Secret(seed) for peer, seed in seeds.items()},
            self_shares={me: own.self_share, **{dealer: Secret(pair[0]) for dealer, pair in shares.items()}},
            escrow_shares={
                me: own.escrow_share,
                **{dealer: Secret(pair[1]) for dealer, pair in shares.items()},
            },
        )

    accepted = tuple(sorted(opened))
    unsigned = EscrowReply(
        accepted=accepted, escrows=tuple(escrows), commitments=bytes(commitments), signature=b""
    )
    signature = sign(
        seat.membership.identity, statements.ESCROW, me, state.ctx, statements.escrow_digest(unsigned)
    )
    reply = EscrowReply(
        accepted=accepted, escrows=unsigned.escrows, commitments=unsigned.commitments, signature=signature
    )

    state.key.erase()
    erase_all(state.contributions.values())
    erase_all(own.escrow for own in state.own.values())
    return Ready(seat=seat, ctx=state.ctx, accepted=frozenset(accepted), rounds=rounds), reply


def _open_bundle(state: Shared, dealer: int, received: ReceivedDealing) -> bytes:
    """Return the bundle's plaintext if it is what its dealer signed and committed to, for this site."""
    seat, me = state.seat, state.seat.position
    dealing = received.dealing
    if received.digests[state.members.index(me)] != statements.dealing_digest(dealing):
        raise Malformed("the dealing is not the one that the dealer signed for this site")
    seat.context.check_signature(
        received.signature,
        statements.DEALINGS,
        dealer,
        state.ctx,
        state.members,
        received.digests,
        received.secrets_digest,
    )
    plaintext = state.key.open(dealing.sealed, statements.bundle_info(state.ctx, dealer=dealer, holder=me))
    kinds = (statements.SELF_SHARE, statements.ESCROW_SHARE)
    expected = bytearray()
    for index, number in enumerate(seat.context.rounds):
        for kind, one in zip(kinds, _shares(plaintext, index), strict=True):
            read_element(one)
            expected += commitment(kind, state.ctx, number, dealer, me, one)
    if bytes(expected) != dealing.commitments:
        raise Malformed("a share is not what its dealer committed to")
    return plaintext


def _shares(plaintext: bytes, index: int) -> tuple[bytes, bytes]:
    """The shares of b and of e for the batch's round at *index*."""
    start = CONTRIBUTION_BYTES + 2 * ELEMENT_BYTES * index
    middle, end = start + ELEMENT_BYTES, start + 2 * ELEMENT_BYTES
    return plaintext[start:middle], plaintext[middle:end]
