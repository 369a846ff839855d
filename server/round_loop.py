"""The round loop: from one global model to the next, knowing only the `Exchange` protocol."""

import logging
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from server.aggregation import GlobalModel
from server.attendance import Attendance
from server.checkpoint import CheckpointError, Progress, RoundRecord, read_checkpoint, write_checkpoint
from server.cohort import LATER, REOPEN, awake, gather, prepare
from server.course import Course
from server.pending import Attempt
from server.run_state import RunContext, RunState, TooFewSitesError, situation
from server.secure_rounds import Deadlines, Outcome, run_masked_round
from server.subgroups import margin_of, released
from shared_models.architectures import build_model
from shared_models.layouts import carries_average, final_layout, training_layout
from shared_models.manifest import FloatVector, flatten
from shared_models.messages import Close, Evaluate, Train
from shared_models.study import Study
from shared_models.subgroups import num_test_statistics
from shared_models.tasks.registry import task_of
from shared_models.vector import IntVector

log = logging.getLogger("collegium.server")

CLOSE_SECONDS = 30.0
MISBEHAVED = "misbehaved"
RESTARTED = "the server was started again, and what it needs for the round is lost"


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
        state = gather(context, state)

    burned = 0
    for number in range(len(state.progress.rounds) + 1, study.training.num_rounds + 1):
        if has_trained(study, state.progress):
            log.info("the run ends before round %d: its validations get no better", number)
            break
        if state.attempt.round != number:
            state = prepare(context, state, number)
        state = _round(context, state, number)
        reason = state.progress.rounds[-1].burned
        burned = burned + 1 if reason else 0
        if burned > study.aggregation.max_burned_rounds:
            raise TooFewSitesError(
                f"{burned} rounds in a row were burned (max_burned_rounds = "
                f"{study.aggregation.max_burned_rounds}), the last because {reason}; {situation(context, state)}"
            )

    if _unfinished(context, state.progress):
        if state.attempt.round != study.test_round:
            state = prepare(context, state, study.test_round)
        state = _final_test(context, state)
    return state


def has_trained(study: Study, progress: Progress) -> bool:
    """Whether no round of training is to come: all were made, or the validations end the run."""
    rounds = progress.rounds
    return len(rounds) >= study.training.num_rounds or Course.of(study, rounds).ends(study.training)


def _unfinished(context: RunContext, progress: Progress) -> bool:
    """Whether a round or the final test is still to come."""
    return not has_trained(context.study, progress) or (
        progress.test is None and progress.test_burned is None
    )


def _initial(context: RunContext) -> RunState:
    progress = Progress(run_id=context.run_id, study_hash=context.study.hash)
    model = GlobalModel.begin(flatten(build_model(context.study, context.folder)))
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
    attendance = Attendance(refused=dict.fromkeys(progress.misbehaved, MISBEHAVED))
    state = RunState(progress=progress, model=model, attempt=attempt, attendance=attendance, batch=batch)
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
            model, summed = next_model(
                study, number, state.model, outcome.total, reductions=_reductions(study, state)
            )
        except ValueError as error:
            burned = f"the sum makes no sense: {error}"
        else:
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
    if layout.num_statistics and _is_best(study, rounds):
        model = replace(model, best=state.model.average)
    misbehaved = tuple(site for site, why in sorted(state.attendance.refused.items()) if why == MISBEHAVED)
    progress = state.progress.model_copy(update={"rounds": (*rounds, record), "misbehaved": misbehaved})
    write_checkpoint(context.checkpoint, progress, model)
    context.tell(progress)
    return replace(state, progress=progress, model=model, setup_seconds=0.0)


def _is_best(study: Study, rounds: tuple[RoundRecord, ...]) -> bool:
    """Whether the model of the last of *rounds* is the one to keep so far, where the study stops early."""
    if study.training.early_stopping is None or not rounds or rounds[-1].validation is None:
        return False
    return Course.of(study, rounds).best_round == rounds[-1].round


def _reductions(study: Study, state: RunState) -> int:
    return Course.of(study, state.progress.rounds).reductions(study.training)


def next_model(
    study: Study, number: int, model: GlobalModel, total: IntVector, *, reductions: int = 0
) -> tuple[GlobalModel, NDArray[np.int64]]:
    """Return the model after round *number*, and the summed statistics, of the sum of the sites' vectors.

    Raises:
        ValueError: no honest vectors add up to this sum.
    """
    layout = training_layout(study, number, num_weights=len(model.weights))
    training = study.training
    if study.privacy.mode == "distributed":
        gradient, num_patients, statistics = layout.decode_gradient(total)
        gradient /= training.sample_rate * num_patients
        model = model.stepped(gradient, training=training, number=number, reductions=reductions)
        return model, statistics
    mean, _, statistics = layout.decode_sum(total)
    return model.after_update(mean, study=study, number=number, reductions=reductions), statistics


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
        size, first = task_of(context.study).num_statistics, len(summed) - num_test_statistics(context.study)
        test, of_groups = summed[first : first + size], summed[first + size :]
        validated = tuple(int(entry) for entry in summed[:first]) if first else None
        margin = margin_of(context.study, num_sites=len(outcome.survivors))
        progress = state.progress.model_copy(
            update={
                "rounds": _with_validation(state.progress.rounds, validated),
                "test": tuple(int(entry) for entry in test),
                "groups": released(context.study, of_groups, margin=margin),
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
        there = [site for site in awake(context, state, number) if site in state.attendance.opened]
        round_set = batch.round_set(there)
        asked = tuple(batch.context.cohort[position] for position in round_set)
        attempt = Attempt(batch=attempt.batch, round=number, round_set=round_set, asked=asked)
        context.pending.begin(attempt)

    outcome = run_masked_round(
        context.talk,
        batch,
        _request(context, state, number, attempt.round_set),
        _payload(context.study, number, state.model),
        length=length,
        deadlines=Deadlines(train=aggregation.round_timeout_seconds, step=aggregation.step_timeout_seconds),
        pending=context.pending,
        attempt=attempt,
    )

    for receipt in outcome.receipts:
        context.receipts.keep(receipt)
    reasons = outcome.refusals
    final = {site: reason for site, reason in reasons.items() if reason in ("budget", "study-not-approved")}
    final |= dict.fromkeys(outcome.named, MISBEHAVED)
    for site in outcome.named:
        log.error("%s takes no part any more: what it sent is not what it had committed to", site)
    attendance = state.attendance.with_answered(outcome.survivors).with_refused(final)
    lost = {site for site, reason in reasons.items() if reason in REOPEN}
    stale = lost | {site for site, reason in reasons.items() if reason in ("no-batch", "protocol")}
    before = state.progress.rounds[-1].refusals if state.progress.rounds else {}
    failed = {  # "not-open" for the first time is a site that was just started again
        site
        for site, reason in reasons.items()
        if reason in LATER and (reason != "not-open" or before.get(site) == reason)
    }
    attendance = attendance.with_lost(lost).with_failed(failed, number=number)
    return (
        replace(state, attempt=attempt, attendance=attendance, batch=None if stale else batch),
        attempt.asked,
        outcome,
    )


def _request(
    context: RunContext, state: RunState, number: int, round_set: tuple[int, ...]
) -> Train | Evaluate:
    run_id, study = context.run_id, context.study
    if number == study.test_round:
        return Evaluate(run_id=run_id, study_hash=study.hash, round=number, round_set=round_set)
    return Train(
        run_id=run_id,
        study_hash=study.hash,
        round=number,
        round_set=round_set,
        reductions=_reductions(study, state),
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


def _payload(study: Study, number: int, model: GlobalModel) -> bytes:
    """What sites get: the weights to train and, where there is to evaluate, those to evaluate."""
    if number == study.test_round:
        return _bytes(model.kept)
    return _bytes(model.weights) + (_bytes(model.average) if carries_average(study, number) else b"")


def _bytes(weights: FloatVector) -> bytes:
    return np.asarray(weights, dtype="<f4").tobytes()


def _with_validation(
    rounds: tuple[RoundRecord, ...], statistics: tuple[int, ...] | None
) -> tuple[RoundRecord, ...]:
    """The statistics describe the model that the last of *rounds* produced."""
    if statistics is None:
        return rounds
    return (*rounds[:-1], rounds[-1].model_copy(update={"validation": statistics}))
