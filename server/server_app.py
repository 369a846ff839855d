"""The process that plays the server's part of a Flower run.

It takes the task of our run from the SuperLink, proving itself with the SuperExec secret, and calls the run's
main job with a `FlowerExchange`. The delivered bundle is not installed, not read and not imported, here as
little as at a site: should anybody manage to start a run of their own, its task is not taken.
"""

import argparse
import logging
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from server.exchange import Exchange
from server.flower_exchange import FlowerExchange
from shared_models.identity_keys import read_public_key
from shared_models.processes import follow_parent
from shared_models.roster import Roster, read_roster

Job = Callable[[Exchange, Roster, str, Path, str], None]
"""Exchange, roster, the consortium's root key (one OpenSSH line), the server's state folder and the run's id."""

TASK_TYPE = "flwr-serverapp"
TASK_SECONDS = 30.0
HEARTBEAT_SECONDS = 10.0
SUPERLINK_SILENCE_SECONDS = 60.0
FAILURE = "failure.txt"

log = logging.getLogger("collegium.server-app")


def play(job: Job, arguments: list[str] | None = None) -> int:
    """Take the task, do the *job*, report to the SuperLink. Returns the process's exit status.

    The reason of a failure goes to ``STATE/runs/RUN_ID/failure.txt`` as one line, its traceback to the log.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    given = _parse(arguments)
    folder = given.state / "runs" / given.run_id
    (folder / FAILURE).unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    status, details = "failed", "interrupted"
    grid = _take_task(
        given.superlink, given.ca_certificate.read_bytes(), given.secret.read_bytes(), given.flower_run
    )
    try:
        root = read_public_key(given.root)
        roster = read_roster(given.roster, root)
        job(FlowerExchange(grid, roster), roster, root, given.state, given.run_id)
        status, details = "completed", ""
    except Exception as error:  # noqa: BLE001 - whatever it was, it is told and ends the process
        traceback.print_exc()
        details = str(error) or type(error).__name__
        (folder / FAILURE).write_text(details + "\n", encoding="utf-8")
    finally:
        _report(grid, status, details)
    return 0 if status == "completed" else 1


def _take_task(address: str, ca_certificate: bytes, secret: bytes, flower_run: int) -> Any:
    """Claim our run's task and return the grid that belongs to it, kept alive by heartbeats."""
    method = "/flwr.proto.Runtime/AcquireTask"
    interceptors = [
        RuntimeVersionHttpInterceptor(component_name="SuperExec"),
        SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={method}),
    ]
    deadline = time.monotonic() + TASK_SECONDS
    with RuntimeHttpClient.from_server_address(address, False, ca_certificate, interceptors) as client:
        while True:
            answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TASK_TYPE]))
            if answer.HasField("task") and answer.task.run_id == flower_run:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"the SuperLink had no task for run {flower_run}")
            time.sleep(0.1)
    grid = HttpGrid(runtime_api_address=address, root_certificates=ca_certificate, token=answer.token)
    grid._retry_invoker.max_time = SUPERLINK_SILENCE_SECONDS
    taken = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id = taken.task_id
    TaskIdentity.run_id = taken.run.run_id
    TaskIdentity.node_id = taken.context.node_id
    grid.set_run(run_from_proto(taken.run))
    threading.Thread(target=_heartbeats, args=(grid,), name="task-heartbeat", daemon=True).start()
    return grid


def _heartbeats(grid: Any) -> None:
    while True:
        try:
            grid._runtime_client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except Exception as error:  # noqa: BLE001 - the next exchange meets the same failure and reports it
            log.warning("no heartbeat: %s", error)
        time.sleep(HEARTBEAT_SECONDS)


def _report(grid: Any, status: str, details: str) -> None:
    grid._retry_invoker.max_tries = 1
    try:
        grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))
    except httpx.HTTPError as error:
        log.warning("the SuperLink did not take the end of the run: %s", error)
    grid.close()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="the server's part of one run")
    parser.add_argument("--superlink", required=True)
    parser.add_argument("--ca-certificate", required=True, type=Path)
    parser.add_argument("--secret", required=True, type=Path)
    parser.add_argument("--flower-run", required=True, type=int)
    parser.add_argument("--state", required=True, type=Path)
    parser.add_argument("--root", required=True, type=Path)
    parser.add_argument("--roster", required=True, type=Path)
    parser.add_argument("--run-id", required=True)
    return parser.parse_args(arguments)


def main() -> None:
    """Run a study, as the server's child process."""
    follow_parent()
    from server.run import run_in_flower

    sys.exit(play(run_in_flower))


if __name__ == "__main__":
    main()
