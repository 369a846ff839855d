"""``collegium-client init``: a new site, with its keys, its journal, its request, and a policy to be reviewed."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client import init_questions as questions
from client.init_questions import asked
from client.membership import NODE_PUBLIC, make_keys, own_key, read_node_public
from client.network_command import NETWORK_USER, SOCKET, connection_toml
from client.site_file import LabelKey, SiteFile, read_site
from client.site_journal import make_journal
from shared_models.configuration import ConfigurationError, parse_toml
from shared_models.identity_keys import fingerprint, read_public_key
from shared_models.passphrase import new_passphrase
from shared_models.processes import private_folder

out = Console(highlight=False, soft_wrap=True)

PassphraseOption = Annotated[
    bool, typer.Option("--passphrase", help="Encrypt the private keys under a passphrase.")
]


def init(  # noqa: PLR0917 - the options of a command line
    folder: Annotated[Path, typer.Argument(help="Folder to make; must not hold a site yet.")],
    name: Annotated[
        str,
        typer.Option(
            default_factory=asked("--name", "The hospital's name", questions.a_name),
            show_default=False,
            help="The hospital's name: small letters, digits, hyphens.",
        ),
    ],
    server: Annotated[
        str | None,
        typer.Option(
            default_factory=asked(
                "--server",
                "Where the consortium's server answers (HOST:PORT)",
                questions.an_address,
                unless="node_public",
            ),
            show_default=False,
            metavar="HOST:PORT",
            help="Where the consortium's server answers.",
        ),
    ],
    ca: Annotated[
        Path | None,
        typer.Option(
            default_factory=asked(
                "--ca", "The coordinator's ca.pem", questions.a_certificate, unless="node_public"
            ),
            show_default=False,
            exists=True,
            dir_okay=False,
            help="The coordinator's ca.pem.",
        ),
    ],
    root: Annotated[
        Path,
        typer.Option(
            default_factory=asked("--root", "The coordinator's root.pub", questions.a_root_key),
            show_default=False,
            exists=True,
            dir_okay=False,
            help="The coordinator's root.pub.",
        ),
    ],
    images: Annotated[
        Path,
        typer.Option(
            default_factory=asked("--images", "Folder of DICOM files", questions.a_folder),
            show_default=False,
            exists=True,
            file_okay=False,
            help="Folder of DICOM files.",
        ),
    ],
    labels: Annotated[
        Path,
        typer.Option(
            default_factory=asked("--labels", "Labels file (CSV)", questions.a_file),
            show_default=False,
            exists=True,
            dir_okay=False,
            help="Labels, as CSV.",
        ),
    ],
    key: Annotated[
        LabelKey,
        typer.Option(
            default_factory=asked(
                "--key",
                "DICOM attribute in the labels' first column (PatientID, StudyInstanceUID, "
                "AccessionNumber, SeriesInstanceUID, SOPInstanceUID)",
                questions.a_label_key,
            ),
            show_default=False,
            help="DICOM attribute in the labels' first column.",
        ),
    ],
    node_public: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="The network user's node.pub, in place of --server, --ca."
        ),
    ] = None,
    agent_socket: Annotated[Path, typer.Option(help="With --node-public: the socket between them.")] = SOCKET,
    network_user: Annotated[str, typer.Option(help="With --node-public: its name or uid.")] = NETWORK_USER,
    max_runs: Annotated[
        int, typer.Option(min=1, help="How often the study may be run; each costs again.")
    ] = 1,
    min_cohort: Annotated[int, typer.Option(min=2, help="Fewest hospitals in a sum that may be opened.")] = 2,
    passphrase: PassphraseOption = False,
) -> None:
    """Make a site: its keys, the request for the coordinator, and site.toml with a policy to be reviewed.

    What is not given is asked for on a terminal.
    """
    config = folder / "site.toml"
    if config.exists():
        raise ConfigurationError(f"{config} exists; choose another folder")
    if keys := sorted(path.name for path in folder.glob("*.key")):
        raise ConfigurationError(
            f"{folder} holds keys already ({', '.join(keys)}); choose another folder, or move them away. Keys that the "
            "coordinator admitted cannot be made again: without them this hospital is no site"
        )
    root_key = read_public_key(root)
    node_key = None if node_public is None else read_node_public(node_public)
    text = _site_toml(
        name=name,
        connection=connection_toml(server, ca, node_key, agent_socket, network_user),
        images=images.resolve(),
        labels=labels.resolve(),
        key=key,
        max_runs=max_runs,
        min_cohort=min_cohort,
    )
    parse_toml(text, SiteFile, origin=f"{config}, which was not made")
    secret = new_passphrase() if passphrase else None
    private_folder(folder)
    if ca is not None:
        shutil.copyfile(ca, folder / "ca.pem")
    if node_key is not None:
        (folder / NODE_PUBLIC).write_text(node_key + "\n", encoding="ascii")
    shutil.copyfile(root, folder / "root.pub")
    config.write_text(text, encoding="utf-8")
    path, request = make_keys(folder, name, secret, node_public=node_key)
    site = read_site(config)
    make_journal(site, own_key(site, lambda _: secret or ""))
    out.print(f"Made {config}. Read its [policy]: what this hospital refuses, whatever anybody asks.")
    out.print(
        f"Root key of the consortium: {fingerprint(root_key)}; compare it with the coordinator by telephone"
    )
    if secret is not None:
        out.print("The private keys are under the passphrase; keep it: without it they are lost.")
    out.print(f"Send to the coordinator: {path}")
    out.print(f"and read out this fingerprint of your keys to them by telephone: {request.fingerprint}")
    out.print("When the coordinator's roster.toml comes back:")
    out.print(f"  collegium-client join roster.toml --config {config}")
    out.print("When a study is proposed, look at what this hospital has for it, then decide on it:")
    out.print(f"  collegium-client index --study study.proposal.toml --config {config}")
    out.print(f"  collegium-client review study.proposal.toml --config {config}")
    how = "agent" if node_key is not None else "start"
    out.print(f"Then start:  collegium-client {how} --config {config}")


def _site_toml(
    *, name: str, connection: str, images: Path, labels: Path, key: str, max_runs: int, min_cohort: int
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
# columns = {{ effusion = "Erguss" }}   # the same where a study has several findings

[policy]
# What this hospital refuses, whatever the server asks. Review every line.
min_cohort = {min_cohort:<18}# no study that lets sums of fewer hospitals be opened
min_threshold = 2              # no study in which fewer hospitals can open a sum
min_patients = 20              # fewer training patients than this: no training
max_unusable_share = 0.2       # more unusable files than this share: no training
# also: "multi-class-classification", "multi-label-classification", "segmentation"
allowed_tasks = ["binary-classification"]
allowed_architectures = ["small-cnn"]
ask_each_run = false           # true: somebody here approves each run, not only each study
max_runs_per_study = {max_runs:<10}# each run of a study costs its epsilon again
# lifetime_epsilon = 8.0       # what all studies together may cost one patient
# lifetime_delta = 1e-5
allow_no_privacy = false       # true admits studies without differential privacy

[quality]
# How careful this hospital is with its own files; see docs/quality.md.
patient_conflicts = "tell"     # "refuse": leave out who seems to have several Patient IDs, or shares one
identifiers = "tell"           # "refuse": use only files that were de-identified
thumbnails = 4                 # images of each class on the page of collegium-client index; 0: none

[consortium]
root = "root.pub"              # the coordinator's; only a roster that this key signed is used
roster = "roster.toml"         # the consortium's sites; see: collegium-client join
identity_key = "identity.key"  # never leaves this machine

{connection}
[compute]
device = "auto"
"""
