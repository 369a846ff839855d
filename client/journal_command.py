"""``collegium-client journal``: show, check, export or replace the site's journal."""

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.membership import MembershipError, own_key, read_joined
from client.options import SITE_FILE, ConfigOption, JsonOption
from client.receipt_check import check_receipts, read_receipts, receipts_of
from client.site_file import SiteFile, read_site
from client.site_journal import KINDS, make_journal, read_journal
from privacy.journal import (
    ANCHOR_NAME,
    JOURNAL_NAME,
    NEW_KEY,
    Entry,
    JournalEdited,
    JournalError,
    check_chain,
    check_signatures,
    keys_of,
)
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import line_of_public_bytes, public_bytes, read_public_key
from shared_models.processes import write_private
from shared_models.roster import Roster, read_roster
from shared_models.visible_text import visible

ReceiptsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--receipts", help="Another hospital's receipts (journal export --receipts).", dir_okay=False
    ),
]

app = typer.Typer(
    help="The site's signed record of every request, decision, spending and release.", no_args_is_help=True
)
out = Console(highlight=False, soft_wrap=True)


@app.command()
def show(
    config: ConfigOption = SITE_FILE,
    kind: Annotated[
        list[str] | None,
        typer.Option(help=f"Only entries of this kind, may be given several times: {', '.join(KINDS)}."),
    ] = None,
    last: Annotated[int, typer.Option(min=1, help="How many entries, from the end.")] = 30,
    as_json: JsonOption = False,
) -> None:
    """Show the last entries of the journal."""
    if strange := sorted(set(kind or ()) - set(KINDS)):
        raise ConfigurationError(f"--kind {strange[0]}: there is no such kind; there are {', '.join(KINDS)}")
    entries = read_journal(read_site(config)).entries(*(kind or ()))[-last:]
    if as_json:
        typer.echo(json.dumps([entry.to_json() for entry in entries], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("no.", "time (UTC)", "kind", "what"):
        table.add_column(column, justify="right" if column == "no." else "left", overflow="fold")
    for entry in entries:
        words = Text(visible(in_words(entry)))
        table.add_row(str(entry.sequence), entry.time[:19], Text(visible(entry.kind)), words)
    out.print(table)


@app.command()
def verify(
    config: ConfigOption = SITE_FILE,
    file: Annotated[
        Path | None,
        typer.Option(help="An exported journal to check instead, of whatever site.", dir_okay=False),
    ] = None,
    receipts: ReceiptsOption = None,
    roster: Annotated[
        Path | None,
        typer.Option(
            help="With --file: the consortium's roster, by which the site is known.", dir_okay=False
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="With --roster: the consortium's root.pub.", dir_okay=False)
    ] = None,
) -> None:
    """Check every link and signature of the journal, and compare it with what other hospitals keep of it."""
    if file is None:
        own = read_site(config)
        journal = read_journal(own)
        entries, origin = journal.verify(), str(journal.path)
        site, keys = own.name, _keys_by_roster(own)
    else:
        entries, origin = _read_export(file), str(file)
        check_chain(entries, origin=origin)
        check_signatures(entries, origin=origin)
        site, keys = _expected(entries, roster, root)
    if entries[0].body["site"] != site:
        raise JournalEdited(f'{origin}: is the journal of "{entries[0].body["site"]}", not of "{site}"')
    keys |= set(keys_of(entries)[-1:])
    out.print(
        f'{origin}: {len(entries)} entries of "{site}", each signed, none changed, none missing.',
        markup=False,
    )
    out.print(
        f"Identity key: {line_of_public_bytes(keys_of(entries)[-1])}\n"
        f'(the identity_key of "{site}" in the consortium\'s roster.toml)',
        markup=False,
    )
    if entries[0].body["after_loss"] is not None:
        out.print(
            f"It continues no earlier journal: {entries[0].body['after_loss']}", style="yellow", markup=False
        )
    for entry in entries:
        if entry.kind == NEW_KEY and entry.body.get("endorsed") is not True:
            out.print(
                f"Entry {entry.sequence}: a new identity key that the old one did not sign", style="yellow"
            )
    for path in receipts or ():
        found = check_receipts(entries, read_receipts(path), site=site, keys=keys, origin=origin)
        out.print(
            f"{path}: {found} receipts about this site, and the journal holds what each is about.",
            markup=False,
        )


@app.command()
def export(
    target: Annotated[Path, typer.Argument(help="File to write.", dir_okay=False)],
    config: ConfigOption = SITE_FILE,
    only_receipts: Annotated[
        bool,
        typer.Option("--receipts", help="Only what other hospitals signed: for them, and for auditors."),
    ] = False,
) -> None:
    """Write the journal as JSON, for an auditor; or the receipts about other hospitals, for these."""
    if target.exists():
        raise ConfigurationError(f"{target} exists; choose another file")
    journal = read_journal(read_site(config))
    entries = journal.verify()
    if only_receipts:
        receipts = receipts_of(entries)
        values: dict[str, object] = {
            "kept_by": entries[0].body["site"],
            "receipts": [receipt.to_json() for receipt in receipts],
        }
        told = f"{len(receipts)} receipts, which say nothing about any patient"
    else:
        values = {"journal": [entry.to_json() for entry in entries]}
        told = (
            f"{len(entries)} entries. It names patients by pseudonym, and holds counts of this hospital alone"
        )
    write_private(target, (json.dumps(values, indent=1) + "\n").encode("ascii"))
    if only_receipts:
        target.chmod(0o644)
    out.print(f"Wrote {target}: {told}.", markup=False)


@app.command()
def replace(
    reason: Annotated[str, typer.Option(help="Why the journal is lost; stands in the new one.")],
    config: ConfigOption = SITE_FILE,
) -> None:
    """Begin a new journal, where the old one is lost for good. What patients have spent is then not known any more."""
    site = read_site(config)
    if not reason.strip():
        raise ConfigurationError("--reason must say why the journal is lost")
    identity = own_key(site)
    if _is_whole(site):
        raise ConfigurationError(
            f"{site.state / JOURNAL_NAME} is whole: nothing is lost, and nothing was replaced. A new one would forget "
            "what patients have spent, who withdrew, and which studies are approved"
        )
    kept = _put_aside(site)
    make_journal(site, identity, after_loss=reason)
    out.print(
        "A new journal has begun. What patients spent before is not known: with policy.lifetime_epsilon set, this site "
        "takes part in no study any more. Approve studies again, and name the patients again who withdrew."
    )
    for path in kept:
        out.print(f"Kept: {path}", markup=False)


def _is_whole(site: SiteFile) -> bool:
    try:
        read_journal(site)
    except JournalError:
        return False
    return True


def _keys_by_roster(site: SiteFile) -> set[bytes]:
    """The identity keys that the roster has, or had, under the site's name; empty where it has not joined."""
    try:
        return _keys_of_site(read_joined(site), site.name)
    except MembershipError:
        return set()


def _expected(entries: tuple[Entry, ...], roster: Path | None, root: Path | None) -> tuple[str, set[bytes]]:
    """Whose journal an export should be, and the keys of that site: by the roster, where one is given."""
    site = str(entries[0].body["site"])
    if roster is None or root is None:
        out.print(
            "Whose journal this is, it says itself: give --roster and --root, or compare name and key by hand.",
            style="yellow",
        )
        return site, set()
    return site, _keys_of_site(read_roster(roster, read_public_key(root)), site)


def _keys_of_site(roster: Roster, site: str) -> set[bytes]:
    lines = [one.identity_key for one in (*roster.site, *roster.revoked) if one.name == site]
    if not lines:
        raise ConfigurationError(f'the roster knows no "{site}"')
    return {public_bytes(line) for line in lines}


def in_words(entry: Entry) -> str:
    """One line that says what an entry is about."""
    body = dict(entry.body)
    about = " ".join(
        str(part)
        for part in (body.get("run_id"), f"round {body['round']}" if body.get("round") else None)
        if part
    )
    words: Literal[""] | str = ""
    match entry.kind:
        case "created":
            words = f"journal of {body['site']}" + (f"; {body['after_loss']}" if body["after_loss"] else "")
        case "new-key":
            words = "the site has a new identity key"
        case "approval":
            what = f"run {body['run_id']} of " if body["run_id"] else ""
            words = (
                f"{body['by']} {body['verdict']} {what}{body['study_name']} ({str(body['study_hash'])[:12]})"
            )
            words += f": {body['reason']}" if body["reason"] else ""
        case "request":
            words = f"{body['asked']} {about}, {body['bytes']} bytes"
        case "refused":
            words = f"{body['asked']} {about}: {body['reason']}: {body['detail']}"
        case "released":
            words = (
                f"answer to {body['asked']} {about}, {body['bytes']} bytes, sha256 {str(body['sha256'])[:12]}"
            )
            words += ", again" if body["again"] else ""
        case "run":
            noise = body["noise_multiplier"]
            words = f"{about} opened, " + ("no privacy" if noise is None else f"noise multiplier {noise:.3f}")
        case "spent":
            what = f"{body['num_steps']} steps" if body["num_steps"] else "the final test"
            words = f"{about}, {what}"
        case "receipts":
            signers = Counter(str(one["site"]) for one in body["receipts"])  # type: ignore[union-attr,call-overload,index]
            words = "signed by " + ", ".join(sorted(signers))
        case "withdrawn":
            words = f"patient {str(body['patient'])[:12]}…"
    return words


def _put_aside(site: SiteFile) -> list[Path]:
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    kept = []
    for name in (JOURNAL_NAME, ANCHOR_NAME):
        path = site.state / name
        if path.exists():
            kept.append(path.rename(path.with_name(f"{name}.lost-{stamp}")))
    return kept


def _read_export(path: Path) -> tuple[Entry, ...]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return tuple(Entry.from_json(entry) for entry in values["journal"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: is no exported journal") from error
