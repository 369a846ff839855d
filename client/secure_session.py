"""The secure aggregation of one run at a site: holds the protocol's state and calls its steps.

*Guarantee*: all of it is in this process's memory only. An agent that is restarted has lost its batch; it refuses with
``no-batch`` until the server prepares the next one. A refusal leaves the state as it was.
"""

import os

from privacy.secure_aggregation import site_round, site_setup
from privacy.secure_aggregation.messages import (
    AdvertiseRequest,
    ConfirmRequest,
    EscrowRequest,
    ShareRequest,
    UnmaskRequest,
)
from privacy.secure_aggregation.receipts import Receipt
from privacy.secure_aggregation.site_round import Begun, Unmasked, Uploaded
from privacy.secure_aggregation.site_setup import Advertised, History, Membership, Ready, Shared
from shared_models.vector import IntVector


class NoBatch(Exception):
    """The site is not in the state that the request is for: it was restarted, or not in the last setup."""


class SecureSession:
    """What a site remembers of a run's secure aggregation.

    Args:
        membership: who the site is, and what all sites have in common.
        last_round: number of the last round that the site has begun, from its ledger.
    """

    def __init__(self, membership: Membership, *, last_round: int) -> None:
        self._membership = membership
        self._history = History(last_round=last_round)
        self._setup: Advertised | Shared | Ready | None = None
        self._round: Begun | Uploaded | Unmasked | None = None

    # The setup of a batch. A new batch ends the one before: its secrets are erased.

    def advertise(self, message: bytes) -> bytes:
        """Step 1. Raises SecureAggregationError, as all steps do."""
        request = AdvertiseRequest.from_bytes(message)
        state, reply = site_setup.advertise(self._membership, self._history, request)
        self.erase()
        self._setup = state
        self._history = History(last_batch=request.number, last_round=self._history.last_round)
        return reply.to_bytes()

    def share(self, message: bytes) -> bytes:
        """Step 2."""
        state = self._setup
        if not isinstance(state, Advertised):
            raise NoBatch("asked to share, but not after advertising")
        request = ShareRequest.from_bytes(message, num_sites=len(state.seat.context.cohort))
        self._setup, reply = site_setup.share(state, request, randomness=os.urandom)
        return reply.to_bytes()

    def escrow(self, message: bytes) -> bytes:
        """Step 3."""
        state = self._setup
        if not isinstance(state, Shared):
            raise NoBatch("asked to escrow, but not after sharing")
        context = state.seat.context
        request = EscrowRequest.from_bytes(
            message,
            num_members=len(state.members),
            num_sites=len(context.cohort),
            num_rounds=len(context.rounds),
        )
        self._setup, reply = site_setup.escrow(state, request)
        return reply.to_bytes()

    # A round. It ends the one before.

    def begin(self, number: int, round_set: tuple[int, ...], *, request_hash: bytes, length: int) -> None:
        """Check the request of a round, before anything is spent on it."""
        state = self._setup
        if not isinstance(state, Ready):
            raise NoBatch("asked for a round, but not after a setup")
        ready, begun = site_round.begin(
            state, number=number, round_set=round_set, request_hash=request_hash, length=length
        )
        self.drop_round()
        self._setup, self._round = ready, begun
        self._history = History(last_batch=self._history.last_batch, last_round=number)

    def mask(self, vector: IntVector) -> bytes:
        """Return the message that carries the masked vector of the round that was begun."""
        if not isinstance(self._round, Begun):
            raise RuntimeError("a vector is masked once, in a round that was begun")  # noqa: TRY004 - a wrong order
        self._round, reply = site_round.mask(self._round, vector)
        return reply.to_bytes()

    def confirm(self, number: int, message: bytes, *, journal_head: bytes) -> bytes:
        """Sign whose vectors are in the sum, and the head of this site's journal, 32 bytes."""
        state = self._uploaded(number)
        request = ConfirmRequest.from_bytes(message, num_sites=len(state.begun.seat.context.cohort))
        self._round, reply = site_round.confirm(state, request, journal_head=journal_head)
        return reply.to_bytes()

    def unmask(self, number: int, message: bytes) -> tuple[bytes, tuple[Receipt, ...]]:
        """Give the shares that open the sum; return also what the other sites have signed, to be kept."""
        state = self._uploaded(number)
        request = UnmaskRequest.from_bytes(message, num_sites=len(state.begun.seat.context.cohort))
        self._round, reply, receipts = site_round.unmask(state, request)
        return reply.to_bytes(), receipts

    def _uploaded(self, number: int) -> Uploaded:
        if not isinstance(self._round, Uploaded) or self._round.begun.number != number:
            raise NoBatch(f"round {number} is not the one whose vector this site sent last, or is over")
        return self._round

    def drop_round(self) -> None:
        """Erase what is left of the current round: it cannot go on."""
        if self._round is not None:
            self._round.erase()
            self._round = None

    def erase(self) -> None:
        """Erase every secret: the batch is over."""
        self.drop_round()
        if self._setup is not None:
            self._setup.erase()
            self._setup = None
