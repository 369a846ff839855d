"""One run of a study from start to its files, whatever carries the messages."""

import json
import logging
import os
from pathlib import Path

from privacy.secure_aggregation.context import Federation
from server.checkpoint import Progress, read_checkpoint, write_atomically
from server.exchange import Exchange, ExchangeError
from server.model_file import write_model
from server.receipts import Receipts
from server.result import Result, build_result, metrics
from server.round_loop import close_run, has_trained, run_rounds
from server.run_state import RunContext, TooFewSitesError
from shared_models.proposal import PROPOSAL_NAME, read_proposal
from shared_models.roster import Roster
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from shared_models.tasks.task import headline_of

log = logging.getLogger("collegium.server")


def run_study(context: RunContext, *, engine: str, resume: bool = False) -> Result:
    """Run the study and write ``result.json`` and ``model.safetensors`` beside the checkpoint.

    Raises:
        TooFewSitesError, ExchangeError: the run stopped; its state is on disk and can be resumed.
        CheckpointError: there is nothing usable to resume from.
    """
    try:
        state = run_rounds(context, resume=resume)
    except TooFewSitesError:
        _keep_model(context)
        raise
    result = build_result(
        context.study, state.progress, engine=engine, refusals=dict(state.attendance.refused)
    )
    folder = context.checkpoint.parent
    digest = write_model(folder / "model.safetensors", context.study, state.model.kept, result)
    result = result.model_copy(update={"model_digest": digest})
    write_atomically(folder / "result.json", result.to_json().encode())
    try:
        close_run(context, state)
    except ExchangeError as error:
        log.warning("the sites were not told that the run is over: %s", error)
    return result


def _keep_model(context: RunContext) -> None:
    """After the last round of training the model is worth keeping, even if the final test cannot be made."""
    progress, model = read_checkpoint(context.checkpoint, study_hash=context.study.hash)
    if has_trained(context.study, progress):
        result = build_result(context.study, progress, engine="unknown", refusals={})
        write_model(context.checkpoint.with_name("model.safetensors"), context.study, model.kept, result)


def checkpoint_path(state: Path, run_id: str) -> Path:
    """Where a run keeps its state below the server's state folder."""
    return state / "runs" / run_id / "checkpoint.safetensors"


def federation_of(study: Study, run_id: str, roster: Roster) -> Federation:
    """What secure aggregation binds a run to."""
    return Federation.of(study_hash=study.hash, run_id=run_id, roster=roster, constants=study.aggregation)


def run_in_flower(exchange: Exchange, roster: Roster, root: str, state: Path, run_id: str) -> None:
    """The ServerApp's main job: run, or go on with, the study in the run's folder, which the *root* key signed."""
    checkpoint = checkpoint_path(state, run_id)
    study, _ = read_proposal(checkpoint.with_name(PROPOSAL_NAME), root)
    context = RunContext(
        study=study,
        run_id=run_id,
        exchange=exchange,
        federation=federation_of(study, run_id, roster),
        checkpoint=checkpoint,
        receipts=Receipts(state / "receipts"),
        tell=lambda progress: write_progress(checkpoint.with_name("progress.json"), study, progress),
    )
    run_study(context, engine="deployed", resume=checkpoint.exists())


def write_progress(path: Path, study: Study, progress: Progress) -> None:
    """Write how far a run is, for whoever watches it: ``progress.json``."""
    validated = [record for record in progress.rounds if record.validation is not None]
    task, value = task_of(study), None
    metric, _ = headline_of(task)
    if validated and validated[-1].validation is not None:
        value = metrics(task, validated[-1].validation)[metric]
    last = progress.rounds[-1] if progress.rounds else None
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    values = {
        "run_id": progress.run_id,
        "round": len(progress.rounds),
        "num_rounds": study.training.num_rounds,
        "survivors": list(last.survivors) if last else [],
        "burned": last.burned if last else None,
        f"validation_{metric}": value,
        "tested": progress.test is not None,
        "test_burned": progress.test_burned,
        "process": os.getpid(),
    }
    partial.write_text(json.dumps(values), encoding="utf-8")
    partial.replace(path)
