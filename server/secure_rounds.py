"""Secure aggregation over an exchange: the setup of a batch, and one round's sum.

The rules are in `privacy.secure_aggregation`; here messages are carried, and whoever fails is dropped by name. A round
gives the sum of its survivors' vectors, or a reason why there is none.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from privacy.secure_aggregation import server_setup
from privacy.secure_aggregation.context import BatchContext
from privacy.secure_aggregation.masks import Vector
from privacy.secure_aggregation.messages import (
    Advertisement,
    Confirmation,
    EscrowReply,
    MaskedVector,
    ShareReply,
    UnmaskReply,
)
from privacy.secure_aggregation.receipts import Receipt
from privacy.secure_aggregation.refusals import BadHolder, RoundFailed, SecureAggregationError
from privacy.secure_aggregation.server_round import MaskedSum, Round
from privacy.secure_aggregation.server_setup import Advertising, Batch
from server.checkpoint import CheckpointError
from server.conversation import BAD_REPLY, Conversation
from server.pending import Attempt, PendingRound, confirmations_of, survivors_of
from shared_models.messages import Advertise, Confirm, Escrow, Evaluate, Request, Share, Train, Unmask, encode

log = logging.getLogger("collegium.server")

Message = TypeVar("Message")


@dataclass(slots=True, kw_only=True)
class SetUp:
    """The outcome of a setup: the batch, or none, and why sites are not in it."""

    batch: Batch | None = None
    refusals: dict[str, str] = field(default_factory=dict)
    failure: str | None = None


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The outcome of a round.

    Attributes:
        total: the sum, uint32; None where the round is burned.
        survivors: names of the sites whose vectors arrived.
        refusals: reason by site that was asked and sent no vector.
        failure: why there is no sum; None where there is.
        receipts: what the survivors have signed.
        named: sites that caused a failure, as what they sent shows.
        seconds: by phase.
    """

    total: Vector | None = None
    survivors: tuple[str, ...] = ()
    refusals: dict[str, str] = field(default_factory=dict)
    failure: str | None = None
    named: tuple[str, ...] = ()
    receipts: tuple[Receipt, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


def set_up_batch(talk: Conversation, context: BatchContext, *, timeout_seconds: float) -> SetUp:
    """Run the three exchanges of a setup with the sites of *context*. Raises ExchangeError."""
    outcome = SetUp()
    stage = _Stage(talk, context, outcome.refusals, timeout_seconds)
    members: Advertising
    try:
        advertisements = stage.run(
            Advertise(run_id=talk.run_id, study_hash=talk.study_hash),
            dict.fromkeys(range(len(context.cohort)), server_setup.advertise_request(context).to_bytes()),
            lambda position, payload: Advertisement.from_bytes(payload),
            lambda position, reply: server_setup.check_advertisement(context, position, reply),
        )
        for position in server_setup.with_shared_keys(advertisements):
            log.warning("%s advertises a key that another site has too", context.cohort[position])
            outcome.refusals[context.cohort[position]] = BAD_REPLY
            del advertisements[position]
        members = server_setup.gather_advertisements(context, advertisements)
        dealt = stage.run(
            Share(run_id=talk.run_id, study_hash=talk.study_hash),
            dict.fromkeys(members.members, members.request().to_bytes()),
            lambda position, payload: ShareReply.from_bytes(
                payload, dealer=position, members=members.members, num_rounds=len(context.rounds)
            ),
            lambda position, reply: server_setup.check_dealings(members, position, reply),
        )
        requests = server_setup.escrow_requests(members, dealt)
        escrows = stage.run(
            Escrow(run_id=talk.run_id, study_hash=talk.study_hash),
            {position: request.to_bytes() for position, request in requests.items()},
            lambda position, payload: EscrowReply.from_bytes(
                payload, members=members.members, num_rounds=len(context.rounds)
            ),
            lambda position, reply: server_setup.check_escrow(members, position, reply),
        )
        outcome.batch = server_setup.finish_setup(members, dealt, escrows)
    except SecureAggregationError as error:
        outcome.failure = str(error)
        log.warning("batch %d was not set up: %s", context.number, error)
    return outcome


@dataclass(frozen=True, slots=True)
class _Stage:
    """One exchange of a setup after the other."""

    talk: Conversation
    context: BatchContext
    refusals: dict[str, str]
    timeout_seconds: float

    def run(
        self,
        header: Request,
        payloads: Mapping[int, bytes],
        decode: Callable[[int, bytes], Message],
        check: Callable[[int, Message], None],
    ) -> dict[int, Message]:
        """Ask the sites at these positions; return the good replies by position, note why others are missing."""
        cohort = self.context.cohort
        encoded: dict[bytes, bytes] = {}
        requests = {
            cohort[position]: encoded.setdefault(payload, encode(header, payload))
            for position, payload in payloads.items()
        }
        good = {}
        replies = self.talk.ask(
            requests, header, timeout_seconds=self.timeout_seconds, enough=self.context.terms.least
        )
        for reply in replies:
            position = cohort.index(reply.site)
            if reply.refusal is not None:
                self.refusals[reply.site] = reply.refusal
                continue
            try:
                message = decode(position, reply.payload)
                check(position, message)
            except SecureAggregationError as error:
                log.warning("%s of %s was left out: %s", header.kind, reply.site, error)
                self.refusals[reply.site] = BAD_REPLY
                continue
            good[position] = message
        return good


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds that sites have: for the first exchange of a round, and for each of the small ones."""

    train: float
    step: float


def run_masked_round(
    talk: Conversation,
    batch: Batch,
    request: Train | Evaluate,
    payload: bytes,
    *,
    length: int,
    deadlines: Deadlines,
    pending: PendingRound,
    attempt: Attempt,
) -> Outcome:
    """Ask the round set of *request* for vectors of *length*, and return their sum.

    Args:
        talk: carries the messages.
        batch: whose secrets the round uses.
        request: its round set names positions of the batch.
        payload: the global model.
        length: of the vectors.
        deadlines: for the exchanges.
        pending: where the progress of the round is recorded, each step before sites hear of it.
        attempt: what is recorded of the round so far: more than its beginning if the server was started again.

    Raises:
        ExchangeError: the carrier failed; called again with the same arguments, the round goes on.
    """
    outcome = Outcome()
    cohort = batch.context.cohort
    message = encode(request, payload)
    about = Round.of(
        batch,
        number=request.round,
        round_set=request.round_set,
        request_hash=hashlib.sha256(message).digest(),
        length=length,
    )
    try:
        survivors = survivors_of(attempt)
        if survivors is None:
            total = MaskedSum(about)
            with _timed(outcome, "exchange"):
                names = [cohort[position] for position in request.round_set]
                _collect(talk, total, dict.fromkeys(names, message), request, outcome, deadlines.train)
            total.confirm_request()
            attempt = pending.survived(attempt, total.total, total.survivors)
        else:
            total = MaskedSum(about, total=pending.masked_sum(length + 1), survivors=survivors)
        outcome.survivors = tuple(cohort[position] for position in total.survivors)

        confirmations = confirmations_of(attempt)
        if confirmations is None:
            with _timed(outcome, "confirm"):
                confirmations = _confirmations(talk, total, request.round, deadlines.step)
            outcome.receipts = _receipts(total, confirmations)
            total.unmask_request(confirmations)
            pending.confirmed(attempt, confirmations)
        outcome.receipts = _receipts(total, confirmations)

        with _timed(outcome, "unmask"):
            shares, bad = _shares(talk, total, confirmations, request.round, deadlines.step)
            outcome.named = bad
            outcome.total = total.unmasked(shares)
    except (SecureAggregationError, CheckpointError) as error:
        outcome.failure = str(error)
        if isinstance(error, RoundFailed):
            outcome.named += tuple(cohort[position] for position in error.positions)
    return outcome


def _receipts(total: MaskedSum, confirmations: Mapping[int, Confirmation]) -> tuple[Receipt, ...]:
    return tuple(total.receipt(site, signed) for site, signed in confirmations.items())


def _collect(  # noqa: PLR0917 - one after the other
    talk: Conversation,
    total: MaskedSum,
    requests: dict[str, bytes],
    header: Request,
    outcome: Outcome,
    timeout_seconds: float,
) -> None:
    """Fold each vector as it arrives."""
    cohort = total.about.batch.context.cohort
    for reply in talk.ask(requests, header, timeout_seconds=timeout_seconds):
        if reply.refusal is not None:
            outcome.refusals[reply.site] = reply.refusal
            continue
        try:
            vector = MaskedVector.from_bytes(reply.payload, length=total.about.length)
            total.fold(cohort.index(reply.site), vector)
        except SecureAggregationError as error:
            log.warning("the vector of %s was left out: %s", reply.site, error)
            outcome.refusals[reply.site] = BAD_REPLY
    outcome.survivors = tuple(cohort[position] for position in total.survivors)


def _confirmations(
    talk: Conversation, total: MaskedSum, number: int, timeout_seconds: float
) -> dict[int, Confirmation]:
    """Have the survivors sign who survived. Raises TooFewSites before anybody is asked."""
    context = total.about.batch.context
    header = Confirm(run_id=talk.run_id, study_hash=talk.study_hash, round=number)
    message = encode(header, total.confirm_request().to_bytes())
    requests = {context.cohort[position]: message for position in total.survivors}
    good = {}
    for reply in talk.ask(requests, header, timeout_seconds=timeout_seconds, enough=context.terms.threshold):
        if reply.refusal is not None:
            continue
        position = context.cohort.index(reply.site)
        try:
            confirmation = Confirmation.from_bytes(reply.payload)
            total.check_confirmation(position, confirmation)
        except SecureAggregationError as error:
            log.warning("the confirmation of %s was left out: %s", reply.site, error)
            continue
        good[position] = confirmation
    return good


def _shares(
    talk: Conversation,
    total: MaskedSum,
    confirmations: dict[int, Confirmation],
    number: int,
    timeout_seconds: float,
) -> tuple[dict[int, UnmaskReply], tuple[str, ...]]:
    """Collect the shares of those that confirmed; return them, and the names of holders whose shares are false."""
    context = total.about.batch.context
    header = Unmask(run_id=talk.run_id, study_hash=talk.study_hash, round=number)
    message = encode(header, total.unmask_request(confirmations).to_bytes())
    requests = {context.cohort[position]: message for position in confirmations}
    good, bad = dict[int, UnmaskReply](), list[str]()
    for reply in talk.ask(requests, header, timeout_seconds=timeout_seconds, enough=context.terms.threshold):
        if reply.refusal is not None:
            continue
        position = context.cohort.index(reply.site)
        try:
            shares = UnmaskReply.from_bytes(reply.payload, num_shares=len(total.about.round_set))
            total.check_shares(position, shares)
        except SecureAggregationError as error:
            log.warning("the shares of %s were left out: %s", reply.site, error)
            if isinstance(error, BadHolder):
                bad.append(reply.site)
            continue
        good[position] = shares
    return good, tuple(bad)


class _timed:  # noqa: N801 - reads as a verb
    """Notes the seconds of a phase, also where it fails."""

    def __init__(self, outcome: Outcome, phase: str) -> None:
        self._outcome, self._phase = outcome, phase

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._outcome.seconds[self._phase] = time.perf_counter() - self._begun
