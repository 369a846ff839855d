"""The round loop: from one global model to the next, knowing only the `Exchange` protocol."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from privacy.secure_aggregation.context import BatchContext, Federation
from privacy.secure_aggregation.server_setup import Batch
from server.aggregation import GlobalModel
from server.attendance import Attendance
from server.checkpoint import CheckpointError, Progress, RoundRecord, read_checkpoint, write_checkpoint
from server.conversation import NO_ANSWER, Conversation
from server.exchange import Exchange
from server.pending import Attempt, PendingRound
from server.secure_rounds import Deadlines, Outcome, run_masked_round, set_up_batch
from shared_models.architectures import build_model
from shared_models.layouts import final_layout, training_layout
from shared_models.manifest import FloatVector, Manifest, flatten
from shared_models.messages import Close, Evaluate, Open, Train
from shared_models.study import Study
from shared_models.tasks import task_of

log = logging.getLogger("collegium.server")

CLOSE_SECONDS = 30.0
LOOK_SECONDS = 0.2
AGAIN_SECONDS = 2.0
"""Pause before a site that did not open the run is asked again."""
OPEN_SECONDS = 600.0
"""Least time that sites get to read their images when a run starts."""
LATER = ("not-open", "failed", "no-batch", "protocol", "no-answer", "bad-reply")
"""Reasons after which a site may be asked again; all others are final."""
REOPEN = ("not-open", "failed")
"""Reasons after which a site has to open the run again."""
RESTARTED = "the server was started again, and what it needs for the round is lost"


class TooFewSitesError(RuntimeError):
    """The run cannot go on with the sites that answer. It is saved and can be resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What stays the same in a run.

    Attributes:
        federation: study, run, roster and terms, as secure aggregation binds them.
        checkpoint: where the state of the run is kept.
        patience_seconds: how long all known sites are waited for before enough of them will do.
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
    tell: Callable[[Progress], None] = field(default=lambda progress: None)

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


def run_rounds(context: RunContext, *, resume: bool = False) -> RunState:
    """Run the study to its end and return the last state.

    Raises:
        TooFewSitesError: too few sites take part, or too many rounds in a row were burned; the state is on disk.
        ExchangeError: the carrier failed; the state is on disk.
        CheckpointError: *resume* and there is nothing usable to resume from.
    """
    study = context.study
    state = _saved(context) if resume else _initial(context)
    if _unfinished(context, state.progress):
        state = _gather(context, state)

    burned = 0
    for number in range(len(state.progress.rounds) + 1, study.training.num_rounds + 1):
        if state.attempt.round != number:
            state = _prepare(context, state, number)
        state = _round(context, state, number)
        reason = state.progress.rounds[-1].burned
        burned = burned + 1 if reason else 0
        if burned > study.aggregation.max_burned_rounds:
            raise TooFewSitesError(
                f"{burned} rounds in a row were burned (max_burned_rounds = "
                f"{study.aggregation.max_burned_rounds}), the last because {reason}; {_situation(context, state)}"
            )

    if _unfinished(context, state.progress):
        if state.attempt.round != study.test_round:
            state = _prepare(context, state, study.test_round)
        state = _final_test(context, state)
    return state


def _unfinished(context: RunContext, progress: Progress) -> bool:
    """Whether a round or the final test is still to come."""
    left = len(progress.rounds) < context.study.training.num_rounds
    return left or (progress.test is None and progress.test_burned is None)


def _initial(context: RunContext) -> RunState:
    progress = Progress(run_id=context.run_id, study_hash=context.study.hash)
    model = GlobalModel.begin(flatten(build_model(context.study)))
    write_checkpoint(context.checkpoint, progress, model)
    return RunState(progress=progress, model=model)


def _saved(context: RunContext) -> RunState:
    """The state on disk. A round that was begun goes on, if its batch is there; else it is burned: sites spent it."""
    progress, model = read_checkpoint(context.checkpoint, study_hash=context.study.hash)
    if progress.run_id != context.run_id:
        raise CheckpointError(f"{context.checkpoint}: is of run {progress.run_id}, not {context.run_id}")
    attempt, batch = context.pending.read(), context.pending.batch(context.federation)
    if batch is not None and batch.context.number != attempt.batch:
        batch = None  # the setup of a later one had begun, and with it the sites ended this one
    state = RunState(progress=progress, model=model, attempt=attempt, batch=batch)
    tested = progress.test is not None or progress.test_burned is not None
    under_way = attempt.round > len(progress.rounds) and not (
        attempt.round == context.study.test_round and tested
    )
    if not under_way or batch is not None:
        return state
    if attempt.round == context.study.test_round:
        progress = progress.model_copy(update={"test_burned": RESTARTED})
    else:
        record = RoundRecord(
            round=attempt.round, asked=attempt.asked, survivors=(), burned=RESTARTED, refusals={}, seconds={}
        )
        progress = progress.model_copy(update={"rounds": (*progress.rounds, record)})
    write_checkpoint(context.checkpoint, progress, model)
    return replace(state, progress=progress, batch=None)


def _gather(context: RunContext, state: RunState) -> RunState:
    """Wait for the sites and have them open the run, until all known sites have answered or patience ends.

    Opening takes as long as a site needs to read its images; a site that is late joins at a later round.
    """
    begun = time.monotonic()
    enough_since: float | None = None
    while True:
        present, known = set(context.exchange.sites()), set(context.exchange.known_sites())
        if present >= known or (enough_since is not None and len(present) >= context.least):
            timeout = max(OPEN_SECONDS, context.study.aggregation.round_timeout_seconds)
            state = _open(context, state, sorted(present), timeout_seconds=timeout)
        opened, refused = state.attendance.opened, set(state.attendance.refused)
        now = time.monotonic()
        if len(opened) >= context.least and (opened | refused >= known or enough_since is not None):
            return replace(state, attendance=state.attendance.with_answered(opened))
        if len(known - refused) < context.least or now - begun > context.start_seconds:
            raise TooFewSitesError(_too_few(context, state, "the run can be opened at"))
        if enough_since is None and len(present) >= context.least and now - begun >= context.patience_seconds:
            enough_since = now
        time.sleep(LOOK_SECONDS if not present & (opened | refused) else AGAIN_SECONDS)


def _open(
    context: RunContext, state: RunState, sites: list[str], *, timeout_seconds: float, number: int = 1
) -> RunState:
    """Ask those of *sites* that have not opened the run to do so."""
    attendance = state.attendance
    asked = [site for site in sites if site not in attendance.opened and site not in attendance.refused]
    manifest = Manifest.of(build_model(context.study))
    request = Open(run_id=context.run_id, study_hash=context.study.hash, manifest_hash=manifest.hash)
    for reply in context.talk.ask_all(asked, request, timeout_seconds=timeout_seconds):
        if reply.refusal is None:
            attendance = attendance.with_opened(reply.site)
        elif reply.refusal in LATER:
            attendance = attendance.with_failed([reply.site], number=number)
        else:
            attendance = attendance.with_refused({reply.site: reply.refusal})
            log.warning("%s takes no part: %s", reply.site, reply.refusal)
    return replace(state, attendance=attendance)


def _prepare(context: RunContext, state: RunState, number: int) -> RunState:
    """Have enough sites there, and round secrets for all of them: a round that cannot succeed would cost them.

    Raises:
        TooFewSitesError: they did not come; nobody was asked to train, and the round's number is not used up.
    """
    begun = time.monotonic()
    failure = ""
    while True:
        awake = _awake(context, state, number)
        state = _open(
            context,
            state,
            awake,
            timeout_seconds=context.study.aggregation.round_timeout_seconds,
            number=number,
        )
        cohort = [site for site in awake if site in state.attendance.opened]
        if len(cohort) >= context.least:
            if _fits(state.batch, cohort, number, least=context.least):
                return state
            state, failure = _set_up(context, state, cohort, number)
            if not failure:
                return state
        if time.monotonic() - begun > context.patience_seconds:
            what = (
                f"the setup of round {number} failed ({failure}): it needs" if failure else "a round can ask"
            )
            raise TooFewSitesError(_too_few(context, state, what))
        time.sleep(AGAIN_SECONDS)


def _awake(context: RunContext, state: RunState, number: int) -> list[str]:
    """Sites that may be asked in a round; those that rest as well, where there are too few without them."""
    present = context.exchange.sites()
    awake = state.attendance.awake(present, number=number)
    return awake if len(awake) >= context.least else state.attendance.awake(present)


def _fits(batch: Batch | None, cohort: list[str], number: int, *, least: int) -> bool:
    """Whether the prepared batch serves this round for all of the cohort."""
    return (
        batch is not None
        and number in batch.context.rounds
        and set(cohort[: batch.context.terms.num_sites_max]) <= set(batch.ready)
        and len(batch.round_set(cohort)) >= least
    )


def _set_up(context: RunContext, state: RunState, cohort: list[str], number: int) -> tuple[RunState, str]:
    """Prepare a batch with *cohort*, from round *number* on. Returns why there is none, empty where there is one."""
    chosen = tuple(cohort[: context.federation.terms.num_sites_max])
    attempt = Attempt(batch=state.attempt.batch + 1, round=state.attempt.round)
    context.pending.begin(attempt)
    begun = time.perf_counter()
    batch_context = BatchContext(
        federation=context.federation, number=attempt.batch, first_round=number, cohort=chosen
    )
    done = set_up_batch(
        context.talk, batch_context, timeout_seconds=context.study.aggregation.step_timeout_seconds
    )
    if done.batch is not None:
        context.pending.keep(done.batch)
    final = {site: reason for site, reason in done.refusals.items() if reason not in LATER}
    lost = {site for site, reason in done.refusals.items() if reason in REOPEN}
    attendance = state.attendance.with_refused(final).with_lost(lost)
    attendance = attendance.with_failed(set(done.refusals) - set(final) - lost, number=number)
    seconds = state.setup_seconds + time.perf_counter() - begun
    return (
        replace(state, attempt=attempt, batch=done.batch, attendance=attendance, setup_seconds=seconds),
        done.failure or "",
    )


def _round(context: RunContext, state: RunState, number: int) -> RunState:
    study = context.study
    layout = training_layout(study, number, num_weights=len(state.model.weights))

    # 1. The cohort gets the global model; the sum of what it sends is opened, or the round is burned.
    state, asked, outcome = _masked(context, state, number, layout.length)
    burned = outcome.failure

    # 2. The aggregated update.
    begun = time.perf_counter()
    model, statistics = state.model, None
    if outcome.total is not None:
        try:
            mean, _, summed = layout.decode_sum(outcome.total)
        except ValueError as error:
            burned = f"the sum makes no sense: {error}"
        else:
            model = state.model.moved(mean, momentum=study.aggregation.server_momentum)
            statistics = tuple(int(entry) for entry in summed) if layout.num_statistics else None
    if burned:
        log.warning("round %d is burned: %s", number, burned)

    # 3. One atomic checkpoint, then the next round.
    record = RoundRecord(
        round=number,
        asked=asked,
        survivors=outcome.survivors,
        burned=burned,
        refusals=outcome.refusals,
        seconds={
            "setup": state.setup_seconds,
            **outcome.seconds,
            "aggregate": time.perf_counter() - begun,
        },
    )
    rounds = _with_validation(state.progress.rounds, statistics)
    progress = state.progress.model_copy(update={"rounds": (*rounds, record)})
    write_checkpoint(context.checkpoint, progress, model)
    context.tell(progress)
    return replace(state, progress=progress, model=model, setup_seconds=0.0)


def _final_test(context: RunContext, state: RunState) -> RunState:
    """Evaluate the final model on test patients, and on validation patients where the last round is named.

    Sites make the test once: where it ends without a sum, the model stays and has no test figures.
    """
    layout = final_layout(context.study)
    state, _, outcome = _masked(context, state, context.study.test_round, layout.length)
    if outcome.total is None:
        log.error("the final test has no figures, and is not repeated: %s", outcome.failure)
        progress = state.progress.model_copy(update={"test_burned": outcome.failure})
    else:
        _, _, summed = layout.decode_sum(outcome.total)
        statistics, size = tuple(int(entry) for entry in summed), task_of(context.study).num_statistics
        validated = statistics[:size] if len(statistics) > size else None
        progress = state.progress.model_copy(
            update={
                "rounds": _with_validation(state.progress.rounds, validated),
                "test": statistics[-size:],
                "tested": outcome.survivors,
            }
        )
    write_checkpoint(context.checkpoint, progress, state.model)
    context.tell(progress)
    return replace(state, progress=progress)


def _masked(
    context: RunContext, state: RunState, number: int, length: int
) -> tuple[RunState, tuple[str, ...], Outcome]:
    """Ask the sites for masked vectors; return who was asked and what came of it."""
    aggregation, batch = context.study.aggregation, state.batch
    if batch is None:
        raise RuntimeError("a round is prepared before it begins")
    attempt = state.attempt
    if attempt.round != number:
        awake = _awake(context, state, number)
        round_set = batch.round_set([site for site in awake if site in state.attendance.opened])
        asked = tuple(batch.context.cohort[position] for position in round_set)
        attempt = Attempt(batch=attempt.batch, round=number, round_set=round_set, asked=asked)
        context.pending.begin(attempt)

    kind = Evaluate if number == context.study.test_round else Train
    outcome = run_masked_round(
        context.talk,
        batch,
        kind(
            run_id=context.run_id,
            study_hash=context.study.hash,
            round=number,
            round_set=attempt.round_set,
        ),
        _payload(state.model.weights),
        length=length,
        deadlines=Deadlines(train=aggregation.round_timeout_seconds, step=aggregation.step_timeout_seconds),
        pending=context.pending,
        attempt=attempt,
    )

    reasons = outcome.refusals
    final = {site: reason for site, reason in reasons.items() if reason in ("budget", "study-not-approved")}
    final |= dict.fromkeys(outcome.named, "misbehaved")
    for site in outcome.named:
        log.error("%s takes no part any more: what it signed and what it sent do not agree", site)
    attendance = state.attendance.with_answered(outcome.survivors).with_refused(final)
    attendance = attendance.with_lost(site for site, reason in reasons.items() if reason in REOPEN)
    stale = {site for site, reason in reasons.items() if reason in ("no-batch", "protocol", *REOPEN)}
    silent = {site for site, reason in reasons.items() if reason == NO_ANSWER}
    attendance = attendance.with_failed(stale | silent, number=number)
    return (
        replace(state, attempt=attempt, attendance=attendance, batch=None if stale else batch),
        attempt.asked,
        outcome,
    )


def close_run(context: RunContext, state: RunState) -> None:
    """Tell the sites that the run is over. Nothing depends on their answers.

    Raises:
        ExchangeError: the carrier failed.
    """
    request = Close(run_id=context.run_id, study_hash=context.study.hash)
    there = [site for site in context.exchange.sites() if site not in state.attendance.refused]
    timeout = min(CLOSE_SECONDS, context.study.aggregation.round_timeout_seconds)
    for _ in context.talk.ask_all(there, request, timeout_seconds=timeout):
        pass


def _payload(weights: FloatVector) -> bytes:
    return np.asarray(weights, dtype="<f4").tobytes()


def _with_validation(
    rounds: tuple[RoundRecord, ...], statistics: tuple[int, ...] | None
) -> tuple[RoundRecord, ...]:
    """The statistics describe the model that the last of *rounds* produced."""
    if statistics is None:
        return rounds
    return (*rounds[:-1], rounds[-1].model_copy(update={"validation": statistics}))


def _too_few(context: RunContext, state: RunState, what: str) -> str:
    return f"{what} fewer than {context.least} sites; {_situation(context, state)}"


def _situation(context: RunContext, state: RunState) -> str:
    refused = ", ".join(f"{site}: {why}" for site, why in sorted(state.attendance.refused.items())) or "none"
    return (
        f"connected now: {', '.join(context.exchange.sites()) or 'none'}; refusals: {refused}; each refusal's cause "
        f"stands in that site's own log; once mended, run {context.run_id} can be resumed"
    )
