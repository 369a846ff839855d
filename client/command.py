"""``collegium-client``: one hospital's command line."""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.inspect_command import index, ledger
from client.journal_command import app as journal_app
from client.membership import MembershipError, check_node_key, make_keys, own_key, read_membership
from client.membership import join as join_consortium
from client.review_command import review
from client.site_file import LabelKey, SiteFile, read_site
from client.site_journal import make_journal
from client.withdraw_command import patient, withdraw
from privacy.journal import JournalError
from privacy.ledger import LedgerError
from shared_models.configuration import ConfigurationError, parse_toml
from shared_models.identity_keys import fingerprint, read_public_key
from shared_models.node_keys import NodeKeyError, public_line
from shared_models.processes import follow_parent, private_folder, signals_end
from shared_models.roster import Roster

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
    root: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The coordinator's root.pub.")],
    images: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of DICOM files.")],
    labels: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Labels, as CSV.")],
    key: Annotated[LabelKey, typer.Option(help="DICOM attribute in the labels' first column.")],
    max_runs: Annotated[
        int, typer.Option(min=1, help="How often the study may be run; each costs again.")
    ] = 1,
    min_cohort: Annotated[int, typer.Option(min=2, help="Fewest hospitals in a sum that may be opened.")] = 2,
) -> None:
    """Make a site: its keys, the request for the coordinator, and site.toml with a policy to be reviewed."""
    config = folder / "site.toml"
    if config.exists():
        raise ConfigurationError(f"{config} exists; choose another folder")
    if keys := sorted(path.name for path in folder.glob("*.key")):
        raise ConfigurationError(
            f"{folder} holds keys already ({', '.join(keys)}); choose another folder, or move them away. Keys that the "
            "coordinator admitted cannot be made again: without them this hospital is no site"
        )
    root_key = read_public_key(root)
    text = _site_toml(
        name=name,
        server=server,
        images=images.resolve(),
        labels=labels.resolve(),
        key=key,
        max_runs=max_runs,
        min_cohort=min_cohort,
    )
    parse_toml(text, SiteFile, origin=f"{config}, which was not made")
    private_folder(folder)
    shutil.copyfile(ca, folder / "ca.pem")
    shutil.copyfile(root, folder / "root.pub")
    config.write_text(text, encoding="utf-8")
    path, request = make_keys(folder, name)
    site = read_site(config)
    make_journal(site, own_key(site))
    out.print(f"Made {config}. Read it; its policy is this hospital's own decision.")
    out.print(
        f"Root key of the consortium: {fingerprint(root_key)}; compare it with the coordinator by telephone"
    )
    out.print(f"Send to the coordinator: {path}")
    out.print(f"and read out this fingerprint of your keys to them by telephone: {request.fingerprint}")
    out.print("When the coordinator's roster.toml comes back:")
    out.print(f"  collegium-client join roster.toml --config {config}")
    out.print("Then review the coordinator's proposal, and decide on it:")
    out.print(f"  collegium-client review study.proposal.toml --config {config}")
    out.print(f"Then start:  collegium-client start --config {config}")


@app.command()
def join(
    roster_file: Annotated[Path, typer.Argument(help="The coordinator's roster.toml.", dir_okay=False)],
    config: ConfigOption = Path("site.toml"),
) -> None:
    """Take the coordinator's roster, after checking that the consortium's root key signed it with this site in it."""
    site = read_site(config)
    roster = join_consortium(site, roster_file)
    out.print(f'"{site.name}" has joined: version {roster.version} of the roster, {_num_sites(roster)}')
    out.print("Compare with another hospital by telephone, so that nobody was given a roster of their own:")
    out.print(f"  roster {roster.fingerprint}")
    for entry in roster.site:
        out.print(f"  site {entry.name}: keys {entry.fingerprint}", markup=False)
    out.print(f"Wrote {site.consortium.roster}. A running site learns of it at its next start.")


@app.command()
def start(config: ConfigOption = Path("site.toml"), end_with_parent: WithParent = False) -> None:
    """Connect to the server and take part, until Ctrl-C or SIGTERM."""
    from client.launch import run_site

    if end_with_parent:
        follow_parent(PARENT_SECONDS)

    site = read_site(config)
    _check_key(site)
    _, roster = read_membership(site)
    check_node_key(site, roster)
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
    """Show which roster the site has, whether it runs, what its agent does, and whether the server answers."""
    site = read_site(config)
    roster, joined = _roster_status(site)
    values = {
        "site": site.name,
        "roster": roster,
        "roster_version": joined.version if joined else None,
        "roster_fingerprint": joined.fingerprint if joined else None,
        "agent": _agent_status(site),
        "server": _server_status(site),
    }
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    out.print(f"Site {site.name}", markup=False)
    out.print(f"  roster: {roster}", markup=False)
    if joined:
        out.print(f"  roster fingerprint: {joined.fingerprint}")
    for name, value in _agent_status(site).items():
        out.print(f"  {name}: {value}", markup=False)
    out.print(f"  server: {values['server']}", markup=False)


app.command()(index)
app.command()(ledger)
app.command()(review)
app.command()(withdraw)
app.command()(patient)
app.add_typer(journal_app, name="journal")


def main() -> None:
    """Entry point of ``collegium-client``: errors become one clear message and an exit status."""
    from client.launch import SiteError

    try:
        app(standalone_mode=True)
    except (ConfigurationError, MembershipError) as error:
        err.print(str(error), style="red", markup=False)
        sys.exit(USAGE)
    except (JournalError, LedgerError, SiteError, OSError) as error:
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


def _num_sites(roster: Roster) -> str:
    num = len(roster.site)
    return f"{num} site{'s' * (num != 1)}"


def _roster_status(site: SiteFile) -> tuple[str, Roster | None]:
    """In words, and the roster itself where the site joined one."""
    try:
        _, roster = read_membership(site)
    except MembershipError as error:
        return str(error), None
    return f"version {roster.version}, {_num_sites(roster)}", roster


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


def _site_toml(
    *, name: str, server: str, images: Path, labels: Path, key: str, max_runs: int, min_cohort: int
) -> str:
    return f"""\
# This hospital's own file; nobody else ever sees it. Relative paths count from this file's folder.

name = {json.dumps(name)}
state = "state"          # journal, approved studies, logs; private to this user

[images]
folder = {json.dumps(str(images), ensure_ascii=False)}

[labels]
file = {json.dumps(str(labels), ensure_ascii=False)}
key = {json.dumps(key)}
# column = "diagnosis"   # where the label's column has another name than in the study

[policy]
# What this hospital refuses, whatever the server asks. Review every line.
min_cohort = {min_cohort:<18}# no study that lets sums of fewer hospitals be opened
min_threshold = 2              # no study in which fewer hospitals can open a sum
min_patients = 20              # fewer training patients than this: no training
max_unusable_share = 0.2       # more unusable files than this share: no training
allowed_tasks = ["binary-classification"]
allowed_architectures = ["small-cnn"]
ask_each_run = false           # true: somebody here approves each run, not only each study
max_runs_per_study = {max_runs:<10}# each run of a study costs its epsilon again
# lifetime_epsilon = 8.0       # what all studies together may cost one patient
# lifetime_delta = 1e-5
allow_no_privacy = false       # true admits studies without differential privacy

[consortium]
root = "root.pub"              # the coordinator's; only a roster that this key signed is used
roster = "roster.toml"         # the consortium's sites; see: collegium-client join
identity_key = "identity.key"  # never leaves this machine

[server]
address = {json.dumps(server)}
ca_certificate = "ca.pem"      # the coordinator's; the server must prove itself against it
node_key = "node.key"          # never leaves this machine

[compute]
device = "auto"
"""


if __name__ == "__main__":
    main()
