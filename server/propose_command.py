"""``collegium-server propose``: sign a study with the root key, for every hospital to review."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.root_key import RootKeyOption, root_private
from server.server_file import read_server, read_sites
from server.weights_file import check_weights
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import read_public_key
from shared_models.proposal import read_proposal, sign_study, write_proposal
from shared_models.roster import Roster
from shared_models.study import Study
from shared_models.study_changes import changes

out = Console(highlight=False, soft_wrap=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="The server's file.", dir_okay=False)]


def propose(
    study_file: Annotated[Path, typer.Argument(help="The agreed study.toml.", dir_okay=False)],
    config: ConfigOption = Path("server.toml"),
    root_key: RootKeyOption = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="NAME.proposal.toml",
            help="File to write; if not given, the one that `study` of server.toml names.",
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Sign a study, so that every hospital can review it and the server may run it."""
    server = read_server(config)
    roster = read_sites(server)
    path = target or server.study
    study, text = sign_study(
        _text_of(study_file), root_private(server, config, root_key), origin=str(study_file)
    )
    check_noise(study)
    check_weights(study, path.parent)
    before = _replaced(path, read_public_key(server.root))
    write_proposal(path, text)

    out.print(f"Proposed: {study.name}, written to {path}", markup=False)
    out.print(f"Hash of the study: {study.hash}")
    if before is not None:
        _tell_changes(before, study)
    for warning in warnings(study, roster):
        out.print(f"Warning: {warning}", style="yellow", markup=False)
    initial = study.model.weights
    also = (
        ""
        if initial is None
        else f", and {path.parent / initial.file}, which goes into its folder `weights`,"
    )
    out.print(f"Give {path}{also} to every hospital; each decides by itself:", markup=False)
    out.print(f"  collegium-client review {path.name}", markup=False)
    if path.resolve() == server.study.resolve():
        out.print(
            f"`collegium-server run --config {config}` runs this study, with the hospitals that approve it.",
            markup=False,
        )
    else:
        out.print(
            f"`collegium-server run` runs the study that {config} names: {server.study}. Name this one there to "
            "run it.",
            markup=False,
        )


def check_noise(study: Study) -> None:
    """Refuse a study that every site would refuse: no noise keeps its promise. Raises ConfigurationError."""
    from privacy.accounting import PrivacyTargetError, TrainingCost

    privacy = study.privacy
    if privacy.epsilon is None or privacy.delta is None:
        return
    try:
        TrainingCost.for_target(
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            sample_rate=study.training.sample_rate,
            num_steps=study.num_steps,
        )
    except PrivacyTargetError as error:
        raise ConfigurationError(f"privacy: {error}; nothing was proposed") from error


def warnings(study: Study, roster: Roster) -> tuple[str, ...]:
    """What keeps the study from being run as things are, or is likely to be refused; one sentence each."""
    found, num = [], len(roster.site)
    aggregation = study.aggregation
    least, most = aggregation.min_sites_in_sum, aggregation.num_sites_max
    if num < least:
        found.append(
            f"the roster has {num} hospital{'s' * (num != 1)}, and a sum needs {least} (the larger of "
            "aggregation.threshold and min_cohort): the study cannot be run before others are admitted"
        )
    elif num == least:
        found.append(
            f"a sum needs all {num} hospitals of the roster: every round in which one is missing is burned"
        )
    if num > most:
        found.append(
            f"the roster has {num} hospitals, and the study allows {most} (aggregation.num_sites_max): it cannot be "
            "run with this roster"
        )
    if least == 2:
        found.append(
            "a sum may hold two hospitals only: each of the two can then work out what the other sent"
        )
    if aggregation.num_colluding == 0:
        found.append("num_colluding = 0: nothing is promised against a hospital that works with the server")
    if study.privacy.mode == "none":
        found.append(
            'privacy.mode = "none": sums say what they say about patients, and each hospital must allow that in its '
            "own policy"
        )
    if study.privacy.mode == "distributed":
        found.append(
            'privacy.mode = "distributed": the promise rests on the noise of several hospitals, and each must allow '
            "that in its own policy (policy.allow_distributed_noise)"
        )
    if study.privacy.mode != "none" and study.evaluation.unnoised:
        found.append("evaluation.unnoised = true: validation and test patients have no differential privacy")
    return tuple(found)


def _tell_changes(before: Study, study: Study) -> None:
    if before.hash == study.hash:
        out.print("The same study was proposed before; approvals of it stand.")
        return
    out.print(
        f"Instead of {before.name} ({before.hash[:12]}). This is another study: approvals of that one do not count for "
        "it. What changed:",
        markup=False,
    )
    for change in changes(before, study):
        out.print(f"  {change.sentence}", markup=False)


def _replaced(path: Path, root: str) -> Study | None:
    """The proposal that is at *path* now. Raises ConfigurationError where something else is."""
    if not path.exists():
        return None
    try:
        return read_proposal(path, root)[0]
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{path} exists and is no proposal of this consortium, so it is not replaced; choose another --out, or "
            f"move it away. ({error})"
        ) from error


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
