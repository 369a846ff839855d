"""``collegium-client``: one hospital's command line."""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.inspect_command import index, ledger
from client.site_file import LabelKey, SiteFile, read_site
from shared_models.configuration import ConfigurationError
from shared_models.node_keys import NodeKeyError, fingerprint, new_node_key, public_line
from shared_models.processes import follow_parent, private_folder, signals_end, write_private
from shared_models.study import read_study

USAGE, FAILURE, INTERRUPTED = 2, 1, 130
PARENT_SECONDS = 40.0

app = typer.Typer(
    help="One hospital's side of Collegium.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

WithParent = Annotated[
    bool, typer.Option("--end-with-parent", hidden=True, help="End when standard input is closed.")
]
ConfigOption = Annotated[Path, typer.Option("--config", help="The site's file.", dir_okay=False)]


@app.command()
def init(  # noqa: PLR0917 - the options of a command line
    folder: Annotated[Path, typer.Argument(help="Folder to make; must not hold a site yet.")],
    name: Annotated[str, typer.Option(help="The hospital's name: small letters, digits, hyphens.")],
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the consortium's server answers.")],
    ca: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The coordinator's ca.pem.")],
    images: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of DICOM files.")],
    labels: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Labels, as CSV.")],
    key: Annotated[LabelKey, typer.Option(help="DICOM attribute in the labels' first column.")],
    study: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The agreed study.toml.")],
    max_runs: Annotated[
        int, typer.Option(min=1, help="How often the study may be run; each costs again.")
    ] = 1,
) -> None:
    """Make a site: its node key, and site.toml with the hospital's policy to be reviewed."""
    config = folder / "site.toml"
    if config.exists():
        raise ConfigurationError(f"{config} exists; choose another folder, or remove it first")
    agreed = read_study(study)
    private_folder(folder)
    shutil.copyfile(ca, folder / "ca.pem")
    shutil.copyfile(study, folder / "study.toml")
    text = _site_toml(
        name=name, server=server, images=images.resolve(), labels=labels.resolve(), key=key, max_runs=max_runs
    )
    config.write_text(text, encoding="utf-8")
    try:
        read_site(config)
    except ConfigurationError:
        config.unlink()
        raise
    private, public = new_node_key()
    write_private(folder / "node.key", private)
    (folder / "node.pub").write_text(f"{public} {name}\n", encoding="ascii")
    out.print(f"Made {config}. Read it; its policy is this hospital's own decision.")
    out.print(f"Study: {agreed.title} (hash {agreed.hash[:16]})")
    out.print(f"Send to the coordinator: {folder / 'node.pub'}")
    out.print(f"and read out this fingerprint to them by telephone: {fingerprint(public)}")
    out.print(f"Then start:  collegium-client start --config {config}")


@app.command()
def start(config: ConfigOption = Path("site.toml"), end_with_parent: WithParent = False) -> None:
    """Connect to the server and take part, until Ctrl-C or SIGTERM."""
    from client.launch import run_site

    if end_with_parent:
        follow_parent(PARENT_SECONDS)

    site = read_site(config)
    _check_key(site)
    try:
        with signals_end():
            out.print(f'Site "{site.name}" starts; logs are in {site.state / "logs"}. Ctrl-C ends it.')
            run_site(site, config, tell=lambda line: out.print(line, markup=False), ended=lambda: False)
    except KeyboardInterrupt:
        err.print("Stopped.")
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def status(
    config: ConfigOption = Path("site.toml"),
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Show whether the site runs, what its agent is doing, and whether the server answers."""
    site = read_site(config)
    values = {"site": site.name, "agent": _agent_status(site), "server": _server_status(site)}
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    out.print(f"Site {site.name}", markup=False)
    for name, value in _agent_status(site).items():
        out.print(f"  {name}: {value}", markup=False)
    out.print(f"  server: {values['server']}", markup=False)


app.command()(index)
app.command()(ledger)


def main() -> None:
    """Entry point of ``collegium-client``: errors become one clear message and an exit status."""
    from client.launch import SiteError

    try:
        app(standalone_mode=True)
    except ConfigurationError as error:
        err.print(str(error), style="red", markup=False)
        sys.exit(USAGE)
    except (SiteError, OSError) as error:
        err.print(str(error), style="red", markup=False)
        sys.exit(FAILURE)


def _check_key(site: SiteFile) -> None:
    """A node key that others could read, or that is none, is told before anything starts."""
    if site.server is None:
        raise ConfigurationError("[server] is missing; add it with address, ca_certificate and node_key")
    path = site.server.node_key
    try:
        public_line(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"server.node_key: {path} cannot be read ({error.strerror})") from error
    except NodeKeyError as error:
        raise ConfigurationError(f"server.node_key: {path} {error}") from error
    if path.stat().st_mode & 0o077:
        raise ConfigurationError(f"server.node_key: others may read {path}; mend it with: chmod 600 {path}")


def _agent_status(site: SiteFile) -> dict[str, str]:
    from client.agent_channel import AgentClient, AgentFailed, AgentUnreachable, socket_path

    try:
        with AgentClient(socket_path(site.state)) as agent:
            return agent.status()
    except (AgentUnreachable, TimeoutError):
        return {"agent": "not running"}
    except (AgentFailed, ValueError) as error:
        return {"agent": str(error)}


def _server_status(site: SiteFile) -> str:
    from client.launch import ServerNotReached, SiteError, check_server

    if site.server is None:
        return "none named in site.toml"
    try:
        check_server(site.server)
    except (SiteError, ServerNotReached) as error:
        return str(error)
    return f"{site.server.address} answers and is the consortium's"


def _site_toml(*, name: str, server: str, images: Path, labels: Path, key: str, max_runs: int) -> str:
    return f"""\
# This hospital's own file; nobody else ever sees it. Relative paths count from this file's folder.

name = {json.dumps(name)}
study = "study.toml"     # the study that this hospital agreed to; anything else is refused
state = "state"          # ledger, journal, logs; private to this user

[images]
folder = {json.dumps(str(images), ensure_ascii=False)}

[labels]
file = {json.dumps(str(labels), ensure_ascii=False)}
key = {json.dumps(key)}
# column = "diagnosis"   # where the label's column has another name than in the study

[policy]
# What this hospital refuses, whatever the server asks. Review every line.
min_patients = 20              # fewer training patients than this: no training
max_unusable_share = 0.2       # more unusable files than this share: no training
max_runs_per_study = {max_runs:<7}# each run of a study costs its epsilon again
# lifetime_epsilon = 8.0       # what all studies together may cost one patient
# lifetime_delta = 1e-5
allow_no_privacy = false       # true admits studies without differential privacy

[server]
address = {json.dumps(server)}
ca_certificate = "ca.pem"      # the coordinator's; the server must prove itself against it
node_key = "node.key"          # never leaves this machine

[compute]
device = "auto"
"""


if __name__ == "__main__":
    main()
