"""A site's half of a round: begin and mask (the train exchange), confirm, unmask.

As in `site_setup`, all checks come first and a step that raises has changed nothing. Between `begin` and `mask` the
site trains; whatever happens there, the round's secrets serve for this one request only.
"""

from dataclasses import dataclass, replace

import numpy as np

from privacy.secure_aggregation import statements
from privacy.secure_aggregation.context import sign
from privacy.secure_aggregation.encoding import check_increasing
from privacy.secure_aggregation.masks import Vector, add_mask, subtract_mask
from privacy.secure_aggregation.messages import (
    Confirmation,
    ConfirmRequest,
    MaskedVector,
    UnmaskReply,
    UnmaskRequest,
)
from privacy.secure_aggregation.receipts import Receipt
from privacy.secure_aggregation.refusals import (
    OtherSurvivorsConfirmed,
    Replayed,
    RoundSetRefused,
    SurvivorsRefused,
    TooFewConfirmations,
    TooFewSites,
)
from privacy.secure_aggregation.site_setup import Ready, RoundSecrets, Seat

SENTINEL = 1
"""Every vector's last entry: the sum's must be the number of survivors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A round whose request was found good; its vector is still to come.

    Attributes:
        length: of the vector, without the sentinel.
        round_ctx: stands in each signature and mask key of the round.
    """

    seat: Seat
    ctx: bytes
    number: int
    round_set: tuple[int, ...]
    request_hash: bytes
    length: int
    round_ctx: bytes
    secrets: RoundSecrets

    def erase(self) -> None:
        """Forget the round's secrets."""
        self.secrets.erase()


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """The masked vector left. ``confirmed`` is the digest of the survivors that were confirmed; None before."""

    begun: Begun
    vector_hash: bytes
    survivors: tuple[int, ...] = ()
    confirmed: bytes | None = None

    def erase(self) -> None:
        """Forget the round's secrets."""
        self.begun.erase()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmasked:
    """The shares left; nothing of the round is kept."""

    number: int

    def erase(self) -> None:
        """Nothing is left to forget."""


def begin(
    state: Ready, *, number: int, round_set: tuple[int, ...], request_hash: bytes, length: int
) -> tuple[Ready, Begun]:
    """Step 4a: check the request of a round, before any training.

    Secrets of earlier rounds that never began are erased; the caller erases the state of the round before.

    Args:
        state: its rounds lose this one and all before.
        number: of the round.
        round_set: S, positions, increasing.
        request_hash: SHA-256 of the entire request, model and parameters included.
        length: of the vector that will be masked.

    Raises:
        Replayed: the round is over, or not of this batch.
        Malformed, RoundSetRefused, TooFewSites: by what is wrong with S.
    """
    me = state.seat.position
    if number not in state.rounds:
        raise Replayed(f"round {number} is over here, or not one of this batch's {state.seat.context.rounds}")
    check_increasing(round_set, len(state.seat.context.cohort), "round set")
    if me not in round_set:
        raise RoundSetRefused("this site is not in the round set")
    if strangers := set(round_set) - state.accepted - {me}:
        names = ", ".join(state.seat.context.cohort[position] for position in sorted(strangers))
        raise RoundSetRefused(f"the round set holds sites whose bundle was not accepted here: {names}")
    if len(round_set) < state.seat.context.terms.least:
        raise TooFewSites(
            f"the round set has {len(round_set)} sites, wanted {state.seat.context.terms.least}"
        )

    secrets = state.rounds[number]
    for earlier, old in state.rounds.items():
        if earlier < number:
            old.erase()
    later = {other: kept for other, kept in state.rounds.items() if other > number}
    begun = Begun(
        seat=state.seat,
        ctx=state.ctx,
        number=number,
        round_set=round_set,
        request_hash=request_hash,
        length=length,
        round_ctx=statements.round_digest(
            state.ctx, number=number, request_hash=request_hash, round_set=round_set, length=length
        ),
        secrets=secrets,
    )
    return replace(state, rounds=later), begun


def mask(state: Begun, vector: Vector) -> tuple[Uploaded, MaskedVector]:
    """Step 4b: append the sentinel, add the masks, sign, and forget what the masks were made of.

    Args:
        state: of the round.
        vector: uint32, shape (length,); it is not changed.
    """
    if vector.dtype != np.uint32 or vector.shape != (state.length,):
        raise ValueError(f"the vector must be uint32 of shape ({state.length},), not {vector.shape}")
    me = state.seat.position
    masked = np.empty(state.length + 1, dtype=np.uint32)
    masked[:-1] = vector
    masked[-1] = SENTINEL
    add_mask(masked, statements.self_mask_key(state.secrets.self_seed.value, state.round_ctx, position=me))
    for peer in state.round_set:
        if peer == me:
            continue
        low, high = min(me, peer), max(me, peer)
        key = statements.pair_mask_key(
            state.secrets.pair_seeds[peer].value, state.round_ctx, low=low, high=high
        )
        (add_mask if me == low else subtract_mask)(masked, key)

    vector_hash = statements.vector_hash(masked.astype("<u4", copy=False).tobytes())
    signature = sign(state.seat.membership.identity, statements.VECTOR, me, state.round_ctx, vector_hash)
    state.secrets.erase_seeds()
    return Uploaded(begun=state, vector_hash=vector_hash), MaskedVector(signature=signature, vector=masked)


def confirm(
    state: Uploaded, request: ConfirmRequest, *, journal_head: bytes
) -> tuple[Uploaded, Confirmation]:
    """Step 5: sign which vectors are in the sum. Never for two different sets in one round.

    Args:
        state: of the round.
        request: the survivors.
        journal_head: 32 bytes, head of this site's journal; the peers keep it.

    Raises:
        SurvivorsRefused: this site's own vector is missing or altered, or a survivor is not in the round set.
        TooFewSites: fewer survivors than the study or this site asks for.
        BadSignature: a survivor did not sign this vector for this request and round set.
        OtherSurvivorsConfirmed: other survivors were confirmed before.
    """
    begun, me = state.begun, state.begun.seat.position
    own = request.survivors.get(me)
    if own is None or own.vector_hash != state.vector_hash:
        raise SurvivorsRefused("the survivors do not hold this site's own vector")
    if not set(request.survivors) <= set(begun.round_set):
        raise SurvivorsRefused("a survivor is not in the round set")
    if len(request.survivors) < begun.seat.context.terms.least:
        raise TooFewSites(
            f"{len(request.survivors)} survivors, the study wants {begun.seat.context.terms.least}"
        )
    for position, survivor in request.survivors.items():
        begun.seat.context.check_signature(
            survivor.signature, statements.VECTOR, position, begun.round_ctx, survivor.vector_hash
        )
    digest = statements.survivors_digest(request.survivors)
    if state.confirmed not in (None, digest):
        raise OtherSurvivorsConfirmed(f"other survivors of round {begun.number} were confirmed before")

    recorded = replace(state, survivors=tuple(request.survivors), confirmed=digest)
    signature = sign(
        begun.seat.membership.identity, statements.CONFIRMATION, me, begun.round_ctx, digest, journal_head
    )
    return recorded, Confirmation(journal_head=journal_head, signature=signature)


def unmask(state: Uploaded, request: UnmaskRequest) -> tuple[Unmasked, UnmaskReply, tuple[Receipt, ...]]:
    """Step 6: for the survivors that this site confirmed, give the shares that open their sum.

    Besides the reply it returns the other sites' confirmations, to be kept.

    For a survivor the share of b, for a vanished site the share of e; never both of one site. The round's shares are
    erased before the reply is returned.

    Raises:
        TooFewConfirmations: fewer than the threshold, this site's own included or not.
        SurvivorsRefused: this site confirmed no survivors, or a confirmation is not of a survivor.
        BadSignature: a confirmation is about something else.
    """
    begun = state.begun
    if state.confirmed is None:
        raise SurvivorsRefused("this site confirmed no survivors of this round")
    if not set(request.confirmations) <= set(state.survivors):
        raise SurvivorsRefused("a confirmation is not of a survivor")
    if len(request.confirmations) < begun.seat.context.terms.threshold:
        raise TooFewConfirmations(
            f"{len(request.confirmations)} confirmations, the threshold is {begun.seat.context.terms.threshold}"
        )
    for position, confirmation in request.confirmations.items():
        begun.seat.context.check_signature(
            confirmation.signature,
            statements.CONFIRMATION,
            position,
            begun.round_ctx,
            state.confirmed,
            confirmation.journal_head,
        )

    survivors = set(state.survivors)
    shares = tuple(
        (begun.secrets.self_shares if site in survivors else begun.secrets.escrow_shares)[site].value
        for site in begun.round_set
    )
    receipts = tuple(
        Receipt(
            site=begun.seat.context.cohort[position],
            run_id=begun.seat.context.federation.run_id,
            round=begun.number,
            position=position,
            round_ctx=begun.round_ctx,
            survivors=state.confirmed,
            journal_head=confirmation.journal_head,
            signature=confirmation.signature,
        )
        for position, confirmation in request.confirmations.items()
        if position != begun.seat.position
    )
    begun.secrets.erase()
    return Unmasked(number=begun.number), UnmaskReply(shares=shares), receipts
