"""The round loop: from one global model to the next, knowing only the `Exchange` protocol."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from server.aggregation import GlobalModel, RunningSum
from server.checkpoint import CheckpointError, Progress, RoundRecord, read_checkpoint, write_checkpoint
from server.exchange import Exchange, SiteReply
from shared_models.architectures import build_model
from shared_models.manifest import FloatVector, Manifest, flatten
from shared_models.messages import (
    Answer,
    Close,
    Evaluate,
    MessageError,
    Open,
    Refusal,
    Request,
    Train,
    decode_reply,
    encode,
)
from shared_models.study import Study
from shared_models.tasks import task_of
from shared_models.vector import VectorLayout

log = logging.getLogger("collegium.server")

MAX_BURNED_IN_A_ROW = 3
CLOSE_SECONDS = 30.0
LOOK_SECONDS = 0.2
AGAIN_SECONDS = 2.0
"""Pause before a site that did not open the run is asked again."""
OPEN_SECONDS = 600.0
"""Least time that sites get to read their images when a run starts."""
LATER = ("not-open", "failed")
"""Refusals after which a site is asked to open the run again at the next round; all others are final."""


class TooFewSitesError(RuntimeError):
    """The run cannot go on with the sites that answer. It is saved and can be resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What stays the same in a run.

    Attributes:
        checkpoint: where the state of the run is kept.
        patience_seconds: how long all known sites are waited for before min_cohort of them are enough.
        start_seconds: how long until min_cohort have opened the run.
        tell: called after each step, for progress displays.
    """

    study: Study
    run_id: str
    exchange: Exchange
    checkpoint: Path
    patience_seconds: float = 60.0
    start_seconds: float = 1800.0
    tell: Callable[[Progress], None] = field(default=lambda progress: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a round turns into its successor. ``final_refusals`` holds reason by site."""

    progress: Progress
    model: GlobalModel
    opened: frozenset[str] = frozenset()
    final_refusals: tuple[tuple[str, str], ...] = ()


def run_rounds(context: RunContext, *, resume: bool = False) -> RunState:
    """Run the study to its end and return the last state.

    Raises:
        TooFewSitesError: fewer than ``min_cohort`` sites take part; the state is on disk.
        ExchangeError: the carrier failed; the state is on disk.
        CheckpointError: *resume* and there is nothing usable to resume from.
    """
    study = context.study
    state = _saved(context) if resume else _initial(context)
    state = _gather(context, state)

    burned = 0
    for number in range(len(state.progress.rounds) + 1, study.training.num_rounds + 1):
        state = _await_cohort(context, state)
        state = _round(context, state, number)
        burned = burned + 1 if state.progress.rounds[-1].burned else 0
        if burned == MAX_BURNED_IN_A_ROW:
            raise TooFewSitesError(_too_few(context, state, f"{burned} rounds in a row got vectors of"))

    if state.progress.test is None:
        state = _await_cohort(context, state)
        state = _final_test(context, state)
    return state


def _initial(context: RunContext) -> RunState:
    progress = Progress(run_id=context.run_id, study_hash=context.study.hash)
    model = GlobalModel.begin(flatten(build_model(context.study)))
    write_checkpoint(context.checkpoint, progress, model)
    return RunState(progress=progress, model=model)


def _saved(context: RunContext) -> RunState:
    progress, model = read_checkpoint(context.checkpoint, study_hash=context.study.hash)
    if progress.run_id != context.run_id:
        raise CheckpointError(f"{context.checkpoint}: is of run {progress.run_id}, not {context.run_id}")
    return RunState(progress=progress, model=model)


def _gather(context: RunContext, state: RunState) -> RunState:
    """Wait for the sites and have them open the run, until all known sites have answered or patience ends.

    Opening takes as long as a site needs to read its images; a site that is late joins at a later round.
    """
    least, begun = context.study.aggregation.min_cohort, time.monotonic()
    enough_since: float | None = None
    while True:
        present, known = set(context.exchange.sites()), set(context.exchange.known_sites())
        if present >= known or (enough_since is not None and len(present) >= least):
            state = _open(context, state, timeout_seconds=max(OPEN_SECONDS, _timeout(context)))
        answered = state.opened | {site for site, _ in state.final_refusals}
        now = time.monotonic()
        if len(state.opened) >= least and (answered >= known or enough_since is not None):
            return state
        if (
            len(known - {site for site, _ in state.final_refusals}) < least
            or now - begun > context.start_seconds
        ):
            raise TooFewSitesError(_too_few(context, state, "the run can be opened at"))
        if enough_since is None and len(present) >= least and now - begun >= context.patience_seconds:
            enough_since = now
        time.sleep(LOOK_SECONDS if present - answered == present else AGAIN_SECONDS)


def _await_cohort(context: RunContext, state: RunState) -> RunState:
    """Wait until enough sites are there for a round: one that cannot succeed would cost the others for nothing.

    Raises:
        TooFewSitesError: they did not come; nobody was asked, and the round's number is not used up.
    """
    begun = time.monotonic()
    while True:
        state = _open(context, state)
        if len(state.opened & set(context.exchange.sites())) >= context.study.aggregation.min_cohort:
            return state
        if time.monotonic() - begun > context.patience_seconds:
            raise TooFewSitesError(_too_few(context, state, "the next step can ask"))
        time.sleep(AGAIN_SECONDS)


def _open(context: RunContext, state: RunState, *, timeout_seconds: float | None = None) -> RunState:
    """Ask sites that are present and have not opened the run to do so."""
    refused = {site for site, _ in state.final_refusals}
    asked = [site for site in context.exchange.sites() if site not in state.opened | refused]
    if not asked:
        return state
    manifest = Manifest.of(build_model(context.study))
    request = Open(run_id=context.run_id, study_hash=context.study.hash, manifest_hash=manifest.hash)
    opened, refusals = set(state.opened), dict(state.final_refusals)
    for reply in _ask(context, asked, request, timeout_seconds=timeout_seconds):
        header, _ = _read(reply, context.run_id)
        if isinstance(header, Answer):
            opened.add(reply.site)
        elif header is not None and header.reason not in LATER:
            refusals[reply.site] = header.reason
            log.warning("%s takes no part: %s", reply.site, header.reason)
    return replace(state, opened=frozenset(opened), final_refusals=tuple(sorted(refusals.items())))


def _round(context: RunContext, state: RunState, number: int) -> RunState:
    study, begun = context.study, time.perf_counter()
    validated = number - 1 in study.evaluation.validation_rounds
    layout = VectorLayout.of_study(
        study.aggregation,
        num_weights=len(state.model.weights),
        num_statistics=task_of(study).num_statistics if validated else 0,
    )

    # 1. The cohort, and the global model for it.
    cohort = sorted(state.opened & set(context.exchange.sites()))[: study.aggregation.num_sites_max]
    request = Train(run_id=context.run_id, study_hash=study.hash, round=number)

    # 2. Each vector is folded into one sum as it arrives.
    total, survivors, refusals = RunningSum(layout), [], {}
    for reply in _ask(context, cohort, request, state.model.weights) if cohort else ():
        outcome = _fold(total, reply, context.run_id, number)
        if outcome is None:
            survivors.append(reply.site)
        else:
            refusals[reply.site] = outcome
    exchanged = time.perf_counter()

    # 3. The aggregated update, if enough sites are in it.
    burned = total.num_vectors < study.aggregation.min_cohort
    model, statistics = state.model, None
    if not burned:
        try:
            mean, summed = total.mean()
        except ValueError as error:
            log.warning("the sum of round %d makes no sense: %s", number, error)
            burned = True
    if not burned:
        model = state.model.moved(mean, momentum=study.aggregation.server_momentum)
        statistics = tuple(int(entry) for entry in summed) if validated else None
    record = RoundRecord(
        round=number,
        asked=tuple(cohort),
        survivors=tuple(sorted(survivors)),
        burned=burned,
        refusals=refusals,
        seconds={"exchange": exchanged - begun, "aggregate": time.perf_counter() - exchanged},
    )
    if burned:
        log.warning("round %d is burned: %d of %d sites sent a vector", number, len(survivors), len(cohort))

    # 4. One atomic checkpoint, then the next round.
    rounds = _with_validation(state.progress.rounds, statistics)
    progress = state.progress.model_copy(update={"rounds": (*rounds, record)})
    write_checkpoint(context.checkpoint, progress, model)
    context.tell(progress)
    lost = {site for site, reason in refusals.items() if reason in LATER}
    final = dict(state.final_refusals) | {
        site: reason for site, reason in refusals.items() if reason in ("budget", "study-not-approved")
    }
    return replace(
        state,
        progress=progress,
        model=model,
        opened=state.opened - lost - set(final),
        final_refusals=tuple(sorted(final.items())),
    )


def _final_test(context: RunContext, state: RunState) -> RunState:
    """Evaluate the final model on test patients, and on validation patients where the last round is named."""
    study = context.study
    size, last = task_of(study).num_statistics, study.training.num_rounds
    also_validation = last in study.evaluation.validation_rounds
    layout = VectorLayout.of_study(
        study.aggregation, num_weights=0, num_statistics=2 * size if also_validation else size
    )
    cohort = sorted(state.opened & set(context.exchange.sites()))[: study.aggregation.num_sites_max]
    request = Evaluate(run_id=context.run_id, study_hash=study.hash)
    total, tested, refusals = RunningSum(layout), list[str](), list[str]()
    for reply in _ask(context, cohort, request, state.model.weights) if cohort else ():
        outcome = _fold(total, reply, context.run_id, last + 1)
        if outcome is None:
            tested.append(reply.site)
        else:
            refusals.append(outcome)
    if total.num_vectors < study.aggregation.min_cohort:
        if refusals and set(refusals) == {"round-already-attempted"}:
            log.error(
                "the final test was made, but its replies are lost; it is not repeated, and has no figures"
            )
            return state
        lost = state.opened - frozenset(tested)
        raise TooFewSitesError(
            _too_few(context, replace(state, opened=lost), "the final test got vectors of")
        )
    statistics = [int(entry) for entry in total.statistics()]
    rounds = _with_validation(state.progress.rounds, tuple(statistics[:size]) if also_validation else None)
    progress = state.progress.model_copy(
        update={"rounds": rounds, "test": tuple(statistics[-size:]), "tested": tuple(sorted(tested))}
    )
    write_checkpoint(context.checkpoint, progress, state.model)
    context.tell(progress)
    return replace(state, progress=progress)


def close_run(context: RunContext, state: RunState) -> None:
    """Tell the sites that the run is over. Nothing depends on their answers.

    Raises:
        ExchangeError: the carrier failed.
    """
    request = Close(run_id=context.run_id, study_hash=context.study.hash)
    cohort = sorted(state.opened & set(context.exchange.sites()))
    for _ in (
        _ask(context, cohort, request, timeout_seconds=min(CLOSE_SECONDS, _timeout(context)))
        if cohort
        else ()
    ):
        pass


def _timeout(context: RunContext) -> float:
    return context.study.aggregation.round_timeout_seconds


def _ask(
    context: RunContext,
    cohort: Iterable[str],
    request: Request,
    weights: FloatVector | None = None,
    *,
    timeout_seconds: float | None = None,
) -> Iterable[SiteReply]:
    payload = b"" if weights is None else np.asarray(weights, dtype="<f4").tobytes()
    message = encode(request, payload)
    return context.exchange.exchange(
        dict.fromkeys(cohort, message), timeout_seconds=timeout_seconds or _timeout(context)
    )


def _read(reply: SiteReply, run_id: str, number: int = 0) -> tuple[Answer | Refusal | None, bytes]:
    """Decode a reply; None where it is none, or one to another run or round (*number*; 0 outside of rounds)."""
    try:
        header, payload = decode_reply(reply.message)
    except MessageError as error:
        log.warning("%s answered something else than a reply: %s", reply.site, error)
        return None, b""
    if isinstance(header, Answer) and (header.run_id != run_id or header.round != number):
        log.warning("%s answered for round %d of %s", reply.site, header.round, header.run_id)
        return None, b""
    return header, payload


def _fold(total: RunningSum, reply: SiteReply, run_id: str, number: int) -> str | None:
    """Add the reply's vector to the sum; return why not, where it was not added."""
    header, payload = _read(reply, run_id, number)
    if header is None:
        return "failed"
    if isinstance(header, Refusal):
        log.warning("%s refused: %s", reply.site, header.reason)
        return header.reason
    try:
        total.add(payload)
    except ValueError as error:
        log.warning("the vector of %s was left out: %s", reply.site, error)
        return "failed"
    return None


def _with_validation(
    rounds: tuple[RoundRecord, ...], statistics: tuple[int, ...] | None
) -> tuple[RoundRecord, ...]:
    """The statistics describe the model that the last of *rounds* produced."""
    if statistics is None:
        return rounds
    return (*rounds[:-1], rounds[-1].model_copy(update={"validation": statistics}))


def _too_few(context: RunContext, state: RunState, what: str) -> str:
    refused = ", ".join(f"{site}: {reason}" for site, reason in state.final_refusals) or "none"
    return (
        f"{what} fewer than min_cohort = {context.study.aggregation.min_cohort} sites "
        f"(connected now: {', '.join(context.exchange.sites()) or 'none'}; refusals: {refused}); "
        f"each refusal's cause stands in that site's own log; once mended, run {context.run_id} can be resumed"
    )
