"""``collegium-client review``: read a proposed study in plain language, and decide on it."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from client.approvals import Approvals, Decision, Verdict
from client.membership import root_key
from client.options import SITE_FILE, ConfigOption
from client.site_file import SiteFile, read_site
from client.site_journal import open_journal
from client.waiting_runs import study_of_run, waiting_runs
from privacy.journal import Journal
from shared_models.configuration import ConfigurationError
from shared_models.proposal import read_proposal
from shared_models.study import Study
from shared_models.visible_text import visible

if TYPE_CHECKING:  # what these import takes seconds
    from client.admission import NotAdmitted
    from client.review import Earlier
    from client.review_sentences import Section, Sentence
    from privacy.ledger import Ledger

FAILURE = 1
SHORTEST_HASH = 8
STYLES = {"plain": "", "warning": "yellow", "refusal": "bold red"}

out = Console(highlight=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class _Desk:
    """What every review has before it."""

    file: SiteFile
    journal: Journal
    approvals: Approvals
    ledger: "Ledger"


@dataclass(frozen=True, slots=True)
class _Wish:
    """What was decided on the command line; a verdict of None is decided at the terminal, or later."""

    verdict: Verdict | None
    reason: str
    by: str | None
    as_json: bool


@dataclass(frozen=True, slots=True)
class _Matter:
    """What is decided on: a study, or one run of it, and what stands against it."""

    study: Study
    sections: "tuple[Section, ...]"
    against: "tuple[NotAdmitted, ...]"
    run_id: str | None = None
    signature: str | None = None

    @property
    def name(self) -> str:
        """In words."""
        about = f"study {self.study.name}, hash {self.study.hash[:12]}"
        return about if self.run_id is None else f"run {self.run_id} of {about}"


def review(  # noqa: PLR0917 - the options of a command line
    proposal: Annotated[
        Path | None, typer.Argument(help="The coordinator's NAME.proposal.toml.", dir_okay=False)
    ] = None,
    config: ConfigOption = SITE_FILE,
    approve: Annotated[bool, typer.Option("--approve", help="Approve, without being asked.")] = False,
    refuse: Annotated[bool, typer.Option("--refuse", help="Refuse, without being asked.")] = False,
    reason: Annotated[str, typer.Option(help="Why; a refusal needs one. It stays at this hospital.")] = "",
    by: Annotated[str | None, typer.Option(help="Who decides; if not given, this unix user.")] = None,
    run: Annotated[str | None, typer.Option(metavar="RUN_ID", help="Decide on one run.")] = None,
    withdraw: Annotated[
        str | None, typer.Option(metavar="HASH", help="Take the approval of a study back.")
    ] = None,
    waiting: Annotated[bool, typer.Option("--waiting", help="List the runs that wait for approval.")] = False,
    decided: Annotated[bool, typer.Option("--list", help="List all decisions.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts; nobody is asked.")] = False,
) -> None:
    """Say in plain language what a proposed study means for this hospital and its patients, and decide on it."""
    if sum((proposal is not None, run is not None, withdraw is not None, waiting, decided)) != 1:
        raise ConfigurationError(
            "name a proposal to review, or say one of --run RUN_ID, --withdraw HASH, --waiting, --list"
        )
    wish = _Wish(_verdict(approve=approve, refuse=refuse, reason=reason), reason.strip(), by, as_json)
    desk = _desk(config)
    if proposal is not None:
        _review_proposal(desk, proposal, wish)
    elif run is not None:
        _review_run(desk, run, wish)
    elif withdraw is not None:
        _withdraw(desk, withdraw, wish)
    elif waiting:
        _show_waiting(desk, wish)
    else:
        _show_decisions(desk, wish)


def _desk(config: Path) -> _Desk:
    from privacy.ledger import Ledger

    file = read_site(config)
    journal = open_journal(file)
    return _Desk(file, journal, Approvals(journal, file.state), Ledger(journal))


def _verdict(*, approve: bool, refuse: bool, reason: str) -> Verdict | None:
    if approve and refuse:
        raise ConfigurationError("--approve and --refuse exclude each other")
    if refuse and not reason.strip():
        raise ConfigurationError('a refusal needs a reason: --reason "…". It stays at this hospital')
    if approve:
        return "approved"
    return "refused" if refuse else None


# The two matters on which somebody decides


def _review_proposal(desk: _Desk, path: Path, wish: _Wish) -> None:
    from client.admission import objections
    from client.index_report import read_counts
    from client.review import review_study

    study, signature = read_proposal(path, root_key(desk.file))
    sections = review_study(
        study,
        desk.file,
        desk.ledger,
        earlier=_earlier(desk, study),
        counts=read_counts(desk.file.state, study.hash),
        now=datetime.now(UTC),
    )
    against = objections(desk.file, desk.ledger, study)
    _decide(desk, _Matter(study, sections, against, signature=signature), wish)


def _review_run(desk: _Desk, run_id: str, wish: _Wish) -> None:
    from client.admission import objections
    from client.review import review_run

    study_hash = study_of_run(desk.journal, run_id)
    if study_hash is None:
        known = ", ".join(one.run_id for one in waiting_runs(desk.journal, desk.approvals)) or "none"
        raise ConfigurationError(f'the server never asked for a run "{run_id}"; runs that wait: {known}')
    if not desk.approvals.is_approved(study_hash):
        raise ConfigurationError(
            f"run {run_id} is of study {study_hash[:12]}, which is not approved here: review its proposal first"
        )
    study = desk.approvals.study(study_hash)
    sections = review_run(study, desk.file, desk.ledger, run_id=run_id)
    against = objections(desk.file, desk.ledger, study, run_id=run_id)
    _decide(desk, _Matter(study, sections, against, run_id=run_id), wish)


def _earlier(desk: _Desk, study: Study) -> "Earlier | None":
    from client.review import Earlier

    last = desk.approvals.approved_before(study)
    if last is None:
        return None
    try:
        before = desk.approvals.study(last.study_hash)
    except ConfigurationError:
        before = None
    return Earlier(study_hash=last.study_hash, study=before, time=last.time, by=last.by)


# Deciding


def _decide(desk: _Desk, matter: _Matter, wish: _Wish) -> None:
    last = desk.approvals.last(matter.study.hash, matter.run_id)
    if not wish.as_json:
        _show(matter, last)
    verdict, reason = wish.verdict, wish.reason
    if verdict is None and not wish.as_json and sys.stdin.isatty():
        verdict, reason = asked(refused=bool(matter.against), prompt=typer.prompt)
    blocked = verdict == "approved" and bool(matter.against)
    if verdict is not None and not blocked:
        last = desk.approvals.decide(
            matter.study,
            verdict,
            reason=reason,
            run_id=matter.run_id,
            signature=matter.signature,
            by=wish.by,
        )
    if wish.as_json:
        typer.echo(json.dumps(_values(matter, last), indent=2, ensure_ascii=False))
    elif verdict is None:
        out.print(
            "Nothing was decided. On a terminal the question comes here; else say --approve or --refuse."
        )
    elif last is not None and not blocked:
        _tell(matter, last, desk.file)
    if blocked:
        err.print(
            f"Not approved: {desk.file.name}'s policy or budget refuses the {matter.name}. Change site.toml first "
            "if that is what this hospital wants; nothing was written.",
            style="red",
            markup=False,
        )
        raise typer.Exit(FAILURE)


def asked(*, refused: bool, prompt: Callable[..., str]) -> tuple[Verdict | None, str]:
    """Ask for a decision and its reason; approving is no choice where the site's policy refuses.

    Args:
        refused: whether it does.
        prompt: asks one question, as `typer.prompt`.
    """
    choices = ["refuse", "later"] if refused else ["approve", "refuse", "later"]
    answer = prompt("Decide", type=click.Choice(choices), default="later")
    if answer == "later":
        return None, ""
    if answer == "approve":
        return "approved", ""
    reason = ""
    while not reason.strip():
        reason = prompt("Why (stays at this hospital)", type=str)
    return "refused", reason.strip()


def _show(matter: _Matter, last: Decision | None) -> None:
    out.print(Text(f"Review of {matter.name}", style="bold"))
    out.print(_last_words(last))
    for section in matter.sections:
        out.print()
        out.print(Text(section.title, style="bold"))
        for sentence in section.sentences:
            out.print(_sentence(sentence))
    out.print()


def _sentence(sentence: "Sentence") -> Padding:
    """With its mark; a sentence that begins with spaces is an item of a list, further to the right."""
    mark = "" if sentence.kind == "plain" else "! "
    text = sentence.text.lstrip(" ")
    indent = 2 + len(sentence.text) - len(text)
    return Padding(Text(mark + text, style=STYLES[sentence.kind]), (0, 0, 0, indent))


def _last_words(last: Decision | None) -> Text:
    if last is None:
        return Text("Nobody here has decided on it yet.")
    reason = f": {visible(last.reason)}" if last.reason else ""
    return Text(f"Last decision here: {last.verdict} on {last.time[:19]} UTC by {visible(last.by)}{reason}.")


def _tell(matter: _Matter, decision: Decision, file: SiteFile) -> None:
    out.print(
        Text(
            f"{decision.verdict.capitalize()} by {visible(decision.by)}: {matter.name}. Written into the journal."
        )
    )
    if decision.verdict == "refused":
        out.print(_AFTER_REFUSAL)
    elif matter.run_id is None and file.policy.ask_each_run:
        out.print("Each of its runs waits for an approval of its own: collegium-client review --waiting")
    else:
        out.print("A running site takes part from the server's next request on.")


_AFTER_REFUSAL = (
    "A running site answers nothing more for it, from the server's next request on. What has left already stays in the "
    "sums, and what was spent is not refunded."
)


def _values(matter: _Matter, last: Decision | None) -> dict[str, object]:
    study = matter.study
    return {
        "study": {"name": study.name, "title": study.title, "hash": study.hash},
        "run": matter.run_id,
        "sections": [asdict(section) for section in matter.sections],
        "refused_by_policy": [asdict(one) for one in matter.against],
        "decision": None if last is None else asdict(last),
    }


# Taking back, and lists


def _withdraw(desk: _Desk, given: str, wish: _Wish) -> None:
    if wish.verdict == "approved" or not wish.reason:
        raise ConfigurationError('taking an approval back needs a reason: --withdraw HASH --reason "…"')
    approved = [study for study in desk.approvals.approved() if study.hash.startswith(given.lower())]
    if len(given) < SHORTEST_HASH or len(approved) != 1:
        known = ", ".join(f"{one.hash[:12]} ({one.name})" for one in desk.approvals.approved()) or "none"
        raise ConfigurationError(
            f'"{given}" does not name one approved study (at least {SHORTEST_HASH} digits); approved now: {known}'
        )
    decision = desk.approvals.decide(approved[0], "refused", reason=wish.reason, by=wish.by)
    if wish.as_json:
        typer.echo(json.dumps(asdict(decision), indent=2, ensure_ascii=False))
        return
    out.print(f"Taken back: the approval of {approved[0].name}, hash {approved[0].hash[:12]}.")
    out.print(_AFTER_REFUSAL)


def _show_decisions(desk: _Desk, wish: _Wish) -> None:
    decisions = desk.approvals.decisions()
    if wish.as_json:
        typer.echo(json.dumps([asdict(one) for one in decisions], indent=2, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("time (UTC)", "by", "decision", "study", "hash", "run", "reason"):
        table.add_column(column, overflow="fold")
    for one in decisions:
        row = (
            one.time[:19],
            one.by,
            one.verdict,
            one.study_name,
            one.study_hash[:12],
            one.run_id,
            one.reason,
        )
        table.add_row(*(Text(visible(cell or "")) for cell in row))
    out.print(table)


def _show_waiting(desk: _Desk, wish: _Wish) -> None:
    found = waiting_runs(desk.journal, desk.approvals)
    if wish.as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    if not found:
        out.print("No run waits for an approval.")
    for one in found:
        name = desk.approvals.study(one.study_hash).name
        out.print(
            Text(
                f"{one.run_id}: a run of {name} (hash {one.study_hash[:12]}), asked for since "
                f"{one.first_asked[:19]} UTC, last {one.last_asked[:19]}"
            )
        )
        out.print(Text(f"  collegium-client review --run {one.run_id}"))
