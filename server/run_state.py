"""What a run is about, and what a round turns into its successor."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from privacy.secure_aggregation.context import Federation
from privacy.secure_aggregation.server_setup import Batch
from server.aggregation import GlobalModel
from server.attendance import Attendance
from server.checkpoint import Progress
from server.conversation import Conversation
from server.exchange import Exchange
from server.pending import Attempt, PendingRound
from server.receipts import Receipts
from shared_models.study import Study


class TooFewSitesError(RuntimeError):
    """The run cannot go on with the sites that answer. It is saved and can be resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What stays the same in a run.

    Attributes:
        federation: study, run, roster and terms, as secure aggregation binds them.
        checkpoint: where the state of the run is kept.
        patience_seconds: how long all known sites are waited for before enough of them will do.
        receipts: what sites have confirmed last.
        start_seconds: how long until enough sites have opened the run.
        tell: called after each step, for progress displays.
    """

    study: Study
    run_id: str
    exchange: Exchange
    federation: Federation
    checkpoint: Path
    patience_seconds: float = 60.0
    start_seconds: float = 1800.0
    receipts: Receipts = field(default_factory=Receipts)
    tell: Callable[[Progress], None] = field(default=lambda progress: None)

    @property
    def folder(self) -> Path:
        """Of the run; a file of initial weights lies in it."""
        return self.checkpoint.parent

    @property
    def talk(self) -> Conversation:
        """How sites are asked."""
        return Conversation(exchange=self.exchange, run_id=self.run_id, study_hash=self.study.hash)

    @property
    def pending(self) -> PendingRound:
        """The files of the round under way."""
        return PendingRound(self.checkpoint.parent)

    @property
    def least(self) -> int:
        """Fewest sites with which a round can end in a sum."""
        return self.federation.terms.least


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a round turns into its successor.

    Attributes:
        batch: the round secrets that are prepared; None before the first setup.
        attempt: the last batch and round that were begun.
        setup_seconds: what setups have taken since the last round.
    """

    progress: Progress
    model: GlobalModel
    attempt: Attempt = field(default_factory=Attempt)
    attendance: Attendance = field(default_factory=Attendance)
    batch: Batch | None = None
    setup_seconds: float = 0.0


def too_few(context: RunContext, state: RunState, what: str) -> str:
    """The message of a `TooFewSitesError`."""
    return f"{what} fewer than {context.least} sites; {situation(context, state)}"


def situation(context: RunContext, state: RunState) -> str:
    """Who is there and who refused, for the operator."""
    refused = ", ".join(f"{site}: {why}" for site, why in sorted(state.attendance.refused.items())) or "none"
    return (
        f"connected now: {', '.join(context.exchange.sites()) or 'none'}; refusals: {refused}; the cause of "
        "each refusal is told at that site; what the run has reached is saved"
    )
