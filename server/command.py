"""``collegium-server``: the coordinator's command line."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from server.certificate_check import check_tls
from server.certificate_command import certificate
from server.certificates import Authority
from server.doctor_command import doctor
from server.propose_command import propose
from server.roster_command import admit, num_sites, revoke
from server.server_file import ServerFile, read_server, read_sites
from server.weights_file import bring_weights, check_weights
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import (
    fingerprint,
    identity_line,
    new_identity_key,
    read_identity_key,
    read_public_key,
)
from shared_models.passphrase import asked_passphrase, new_passphrase
from shared_models.processes import follow_parent, private_folder, signals_end, write_private
from shared_models.proposal import PROPOSAL_NAME, read_proposal
from shared_models.roster import Roster, write_roster
from shared_models.study import Study, read_study

USAGE, FAILURE, INTERRUPTED = 2, 1, 130
PARENT_SECONDS = 40.0
CONNECTED_SECONDS = 4.0

app = typer.Typer(
    help="The coordinator's side of Collegium.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

WithParent = Annotated[
    bool, typer.Option("--end-with-parent", hidden=True, help="End when standard input is closed.")
]
ConfigOption = Annotated[Path, typer.Option("--config", help="The server's file.", dir_okay=False)]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make; must not hold a server yet.")],
    host: Annotated[list[str], typer.Option(help="Name or address by which sites reach this server.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on which they reach it.")] = 9443,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Encrypt root.key and ca.key under a passphrase.")
    ] = False,
) -> None:
    """Make a consortium and its server: certificates, root key, server.toml, a roster without sites."""
    if (folder / "server.toml").exists():
        raise ConfigurationError(f"{folder / 'server.toml'} exists; choose another folder")
    if keys := [name for name in ("tls/ca.key", "tls/server.key") if (folder / name).exists()]:
        raise ConfigurationError(
            f"{folder} holds keys already ({', '.join(keys)}); choose another folder, or move them away. Hospitals "
            "that have this ca.pem connect to no server with certificates of a new authority"
        )
    authority = Authority(f"Collegium consortium of {host[0]}")
    try:
        issued = authority.server(host)
    except ValueError as error:
        raise ConfigurationError(f"--host: {error}") from error
    secret = new_passphrase() if passphrase else None
    folder.mkdir(parents=True, exist_ok=True)
    root = _make_root(folder, secret)
    tls = private_folder(folder / "tls")
    write_private(tls / "ca.key", authority.key_file(secret))
    write_private(tls / "server.key", issued.key)
    (tls / "ca.pem").write_bytes(authority.issued.certificate)
    (tls / "server.pem").write_bytes(issued.certificate)
    (folder / "server.toml").write_text(_server_toml(_interface(host), port), encoding="utf-8")
    out.print(f"Made {folder / 'server.toml'}. Next:")
    out.print("  1. sign the agreed study:  collegium-server propose study.toml --config …/server.toml")
    out.print(
        f"  2. give every hospital {tls / 'ca.pem'}, {folder / 'root.pub'} and {folder / PROPOSAL_NAME}; "
        f"fingerprint of the root key: {fingerprint(root)}"
    )
    out.print("  3. admit each hospital:  collegium-server admit NAME.request.toml --config …/server.toml")
    out.print(f"  4. give every hospital {folder / 'roster.toml'}")
    out.print("  5. start:  collegium-server run --config …/server.toml")
    if secret is not None:
        out.print("Both keys are under the passphrase; keep it: without it they are lost.")
    out.print(
        f"Keep {tls / 'ca.key'} and {folder / 'root.key'} to yourself: who has root.key decides who is a site. "
        "Best take both off this machine; root.key is needed for `admit`, `revoke` and `propose` only."
    )


@app.command()
def run(
    config: ConfigOption = Path("server.toml"),
    resume: Annotated[
        str | None, typer.Option(metavar="RUN_ID", help="Go on with a run that stopped.")
    ] = None,
    end_with_parent: WithParent = False,
) -> None:
    """Bring the server up, run the study with the hospitals, and end."""
    from server.launch import RunFailed, ServerError, open_server

    if end_with_parent:
        follow_parent(PARENT_SECONDS)
    server = read_server(config)
    for sentence in check_tls(server.tls):
        err.print(sentence, style="yellow", markup=False)
    roster = read_sites(server)
    run_id, study = _chosen_run(server, resume)
    _check_cohort(server, roster, study)
    if resume is None:
        check_weights(study, server.study.parent)
    folder = server.state / "runs" / run_id
    try:
        with signals_end(), open_server(server, roster) as running:
            if resume is None:
                folder.mkdir(parents=True)
                shutil.copyfile(server.study, folder / PROPOSAL_NAME)
                bring_weights(study, server.study.parent, folder)
            out.print(f"Study {study.name}, hash {study.hash[:16]}, run {run_id}")
            if resume is None and (changed := _edited_since(server, study)):
                err.print(changed, style="yellow", markup=False)
            out.print(f"Open for {len(roster.site)} sites at {server.listen.address}")
            with _shown(server, roster, study, folder) as watch:
                running.run(run_id, watch=watch)
    except (RunFailed, ServerError, KeyboardInterrupt):
        if (folder / PROPOSAL_NAME).exists():
            err.print(f"To go on where it stopped: collegium-server run --config {config} --resume {run_id}")
        raise
    for name in ("result.json", "model.safetensors"):
        if (folder / name).exists():
            out.print(f"Wrote {folder / name}")


@app.command()
def status(
    config: ConfigOption = Path("server.toml"),
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Show whether the server runs, which hospitals are connected, and the runs so far."""
    from server.launch import connected

    server = read_server(config)
    roster = read_sites(server)
    now = connected(server.state, roster)
    runs = {
        path.name: _run_state(path) for path in sorted((server.state / "runs").glob("*")) if path.is_dir()
    }
    online = set(now[1]) if now else set()
    if as_json:
        values = {
            "running": now is not None,
            "run": now[0]["run_id"] if now else None,
            "roster_version": roster.version,
            "sites": {site.name: site.name in online for site in roster.site},
            "runs": runs,
        }
        typer.echo(json.dumps(values, indent=2))
        return
    out.print(f"Running: {now[0]['run_id']}" if now else "Not running.")
    out.print(f"Roster: version {roster.version}, {num_sites(roster)}")
    for site in roster.site:
        state = "connected" if site.name in online else "not connected"
        out.print(f"  site {site.name}: {state if now else 'unknown'}  keys {site.fingerprint}")
    for name, state in runs.items():
        out.print(f"  run {name}: {state}")


app.command()(admit)
app.command()(revoke)
app.command()(propose)
app.command()(certificate)
app.command()(doctor)


def main() -> None:
    """Entry point of ``collegium-server``: errors become one clear message and an exit status."""
    from server.exchange import ExchangeError
    from server.launch import RunFailed, ServerError
    from server.superlink import SuperLinkError

    try:
        app(standalone_mode=True)
    except ConfigurationError as error:
        err.print(str(error), style="red", markup=False)
        sys.exit(USAGE)
    except (RunFailed, ServerError, SuperLinkError, ExchangeError, OSError) as error:
        err.print(str(error) or type(error).__name__, style="red", markup=False)
        sys.exit(FAILURE)


def _make_root(folder: Path, passphrase: str | None) -> str:
    """Make root key and empty roster, unless the folder has them. Returns the public key's line."""
    if not (folder / "root.key").exists():
        if (folder / "roster.toml").exists():
            raise ConfigurationError(
                f"{folder / 'roster.toml'} exists without its root.key; bring that key, or remove the roster"
            )
        write_private(folder / "root.key", new_identity_key(passphrase)[0])
    private = read_identity_key(folder / "root.key", lambda key: passphrase or asked_passphrase()(key))
    line = identity_line(private)
    (folder / "root.pub").write_text(line + "\n", encoding="ascii")
    if not (folder / "roster.toml").exists():
        write_roster(folder / "roster.toml", Roster(version=0), private)
    return line


def _chosen_run(server: ServerFile, resume: str | None) -> tuple[str, Study]:
    """The run's id and study: a new run has the study as it is now, a resumed one as it was."""
    runs, root = server.state / "runs", read_public_key(server.root)
    if resume is not None:
        if not (runs / resume / PROPOSAL_NAME).is_file():
            known = ", ".join(sorted(path.name for path in runs.glob("*"))) or "none"
            raise ConfigurationError(f'there is no run "{resume}" below {runs}; there are: {known}')
        if (runs / resume / "result.json").exists():
            raise ConfigurationError(f'run "{resume}" is complete: {runs / resume / "result.json"}')
        return resume, read_proposal(runs / resume / PROPOSAL_NAME, root)[0]
    study = _proposed(server, root)
    run_id = f"{study.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    return run_id, study


def _proposed(server: ServerFile, root: str) -> Study:
    """The study that `server.toml` names; only one that the root key signed is run."""
    if not server.study.exists():
        raise ConfigurationError(
            f"study: {server.study} is not there; sign the agreed study first: collegium-server propose study.toml"
        )
    return read_proposal(server.study, root)[0]


def _edited_since(server: ServerFile, study: Study) -> str | None:
    """A warning where the study.toml beside the proposal is not the one that was proposed."""
    path = server.study.with_name("study.toml")
    try:
        differs = path.exists() and read_study(path).hash != study.hash
    except ConfigurationError:
        return None
    if not differs:
        return None
    return (
        f"{path} is not the study that is run: it was changed after it was proposed. To run it: "
        f"collegium-server propose {path}, and every hospital reviews it"
    )


def _check_cohort(server: ServerFile, roster: Roster, study: Study) -> None:
    aggregation, there = study.aggregation, len(roster.site)
    least, most = aggregation.min_sites_in_sum, aggregation.num_sites_max
    if there < least:
        raise ConfigurationError(
            f"{server.roster} has {there} sites, the study wants at least {least} (aggregation.min_cohort, threshold); "
            "add them with `collegium-server admit`"
        )
    if there > most:
        raise ConfigurationError(
            f"{server.roster} has {there} sites, the study allows {most} (aggregation.num_sites_max)"
        )


def _run_state(folder: Path) -> str:
    if (folder / "result.json").exists():
        return "complete"
    try:
        progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "no round complete"
    return f"{progress['round']} of {progress['num_rounds']} rounds complete"


@contextmanager
def _shown(server: ServerFile, roster: Roster, study: Study, folder: Path) -> Iterator[Callable[[], None]]:
    """A progress bar over the rounds, with the sites that are connected; lines where there is no terminal."""
    from server.launch import connected

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[sites]}"),
        TimeElapsedColumn(),
    )
    total, least = study.training.num_rounds, study.aggregation.min_sites_in_sum
    with Progress(*columns, console=out, disable=not out.is_terminal) as bar:
        task = bar.add_task(f"round 0 of {total}", total=total, sites="")
        asked = 0.0
        shown = ("", "")

        def watch() -> None:
            nonlocal asked, shown
            if time.monotonic() - asked < CONNECTED_SECONDS:
                return
            now = connected(server.state, roster)
            asked = time.monotonic()
            done, there = _rounds(folder), len(now[1]) if now else 0
            text = f"round {done} of {total}"
            if not done and there < least:
                text = f"waiting for at least {least} hospitals (half an hour at most)"
            sites = f"{there} of {len(roster.site)} sites connected"
            bar.update(task, completed=done, description=text, sites=sites)
            if not out.is_terminal and (text, sites) != shown:
                out.print(f"{text}, {sites}")
            shown = (text, sites)

        yield watch
        bar.update(task, completed=_rounds(folder), description=f"round {_rounds(folder)} of {total}")


def _rounds(folder: Path) -> int:
    try:
        return int(json.loads((folder / "progress.json").read_text(encoding="utf-8"))["round"])
    except (OSError, ValueError, KeyError):
        return 0


def _interface(hosts: Sequence[str]) -> str:
    """Where to listen so that all *hosts* are reached, and no more than this machine where they are its own."""
    if all(name in ("localhost", "127.0.0.1", "::1") for name in hosts):
        return "127.0.0.1" if "::1" not in hosts else "::1" if set(hosts) == {"::1"} else "localhost"
    return "::" if any(":" in name for name in hosts) else "0.0.0.0"  # noqa: S104 - it is there to be reached


def _server_toml(host: str, port: int) -> str:
    return f"""\
# The coordinator's own file. Relative paths count from this file's folder.

study = "{PROPOSAL_NAME}"  # the study that is run; see: collegium-server propose
root = "root.pub"        # the consortium's root key, which signs roster and study; give it to every hospital
roster = "roster.toml"   # the hospitals and their keys; see: collegium-server admit
state = "state"          # runs, logs, Flower's database; private to this user

[listen]
host = "{host}"       # interface of the gate, the only part that is reachable from outside
port = {port}

[tls]
certificate = "tls/server.pem"
key = "tls/server.key"
ca_certificate = "tls/ca.pem"   # give this file to every hospital
"""


if __name__ == "__main__":
    main()
