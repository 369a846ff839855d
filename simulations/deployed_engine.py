"""The deployed engine: the commands that people run, as they run them, all on this machine's loopback.

One ``collegium-server run`` (gate with TLS, SuperLink with node authentication, ServerApp) and one
``collegium-client start`` (SuperNode, forwarder, agent) for each virtual hospital.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from client.membership import NODE_KEY, make_keys, own_key
from client.site_file import read_site
from client.site_journal import make_journal
from server.exchange import ExchangeError
from server.weights_file import bring_weights
from shared_models.processes import Child, free_port, python_module
from shared_models.proposal import PROPOSAL_NAME
from simulations.preparation.hospitals import Hospital
from simulations.scenario import Scenario
from simulations.work_folder import write_site, write_study

STOP_SECONDS = 30.0
LOOK_SECONDS = 0.3
_APPROVING = ("--approve", "--by", "simulation")


def run_deployed(
    scenario: Scenario, hospitals: Sequence[Hospital], work: Path, rounds_done: Callable[[int], None]
) -> tuple[tuple[Path, ...], Path]:
    """Set up a consortium below *work*, run the study in it, and end everything.

    Args:
        scenario: its study is run.
        hospitals: prepared.
        work: a folder of its own.
        rounds_done: called with the number of rounds as it grows.

    Returns:
        The ``site.toml`` of each hospital, and the run's folder at the server.

    Raises:
        ExchangeError: the server's command failed; the message ends with what it said.
    """
    server = work / "server"
    port = free_port()
    _command("server.command", "init", str(server), "--host", "127.0.0.1", "--port", str(port))
    write_study(server / "study.toml", scenario.study)
    bring_weights(scenario.study, scenario.weights, server)
    _command("server.command", "propose", str(server / "study.toml"), "--config", str(server / "server.toml"))
    site_files = tuple(_make_site(work, hospital, scenario, port) for hospital in hospitals)
    for path in site_files:
        _command("client.command", "join", str(server / "roster.toml"), "--config", str(path))
        file = read_site(path)
        make_journal(file, own_key(file))
        _command("client.command", "review", str(server / PROPOSAL_NAME), "--config", str(path), *_APPROVING)
    sites: list[Child] = []
    with ExitStack() as stack:
        for path in site_files:
            sites.append(_child(path.parent.name, "client.command", "start", "--config", str(path)))
            stack.callback(sites[-1].stop, STOP_SECONDS)
        coordinator = _child("server", "server.command", "run", "--config", str(server / "server.toml"))
        stack.callback(_terminate, sites)
        stack.callback(coordinator.stop, STOP_SECONDS)
        while coordinator.ended() is None:
            rounds_done(_rounds(server))
            if ended := [site for site in sites if site.ended() is not None]:
                raise ExchangeError(
                    f"{ended[0].name} ended early (log: {ended[0].log}):\n{ended[0].said()[-2000:]}"
                )
            time.sleep(LOOK_SECONDS)
        if coordinator.ended() != 0:
            raise ExchangeError(
                f"collegium-server run failed (log: {coordinator.log}):\n{coordinator.said()[-2000:]}"
            )
    rounds_done(_rounds(server))
    return site_files, _run_folder(server)


def _make_site(work: Path, hospital: Hospital, scenario: Scenario, port: int) -> Path:
    """What a hospital and the coordinator do by hand: the site's files, its keys, its admission."""
    folder = work / "sites" / hospital.name
    table = {
        "address": f"127.0.0.1:{port}",
        "ca_certificate": (work / "server" / "tls" / "ca.pem").resolve(),
        "node_key": NODE_KEY,
    }
    path = write_site(
        folder, hospital, scenario.study, seed=scenario.seed, server=table, weights=scenario.weights
    )
    server = work / "server"
    shutil.copyfile(server / "root.pub", folder / "root.pub")
    request, _ = make_keys(folder, hospital.name)
    _command("server.command", "admit", str(request), "--config", str(server / "server.toml"))
    return path


def _command(module: str, *arguments: str) -> None:
    done = subprocess.run(python_module(module, *arguments), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ExchangeError(f"{module} {arguments[0]} failed:\n{(done.stderr or done.stdout)[-2000:]}")


def _child(name: str, module: str, *arguments: str) -> Child:
    folder = Path(arguments[-1]).parent
    return Child(
        name,
        python_module(module, *arguments, "--end-with-parent"),
        log=folder / "command.log",
        environment={},
    )


def _terminate(children: Sequence[Child]) -> None:
    """Ask all to end at once; each is waited for afterwards."""
    for child in children:
        child.terminate()


def _run_folder(server: Path) -> Path:
    (folder,) = (server / "state" / "runs").iterdir()
    return folder


def _rounds(server: Path) -> int:
    try:
        text = (_run_folder(server) / "progress.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return 0
    return int(json.loads(text)["round"])
