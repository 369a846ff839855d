"""``collegium-client withdraw`` and ``patient``: patients who withdrew, and what a patient could have contributed to.

Patient IDs are read from a file or from the keyboard, never from the command line: others can see it, shells keep it.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.approvals import Approvals
from client.identifiers import normalised
from client.options import SITE_FILE, ConfigOption, JsonOption
from client.secret import SiteSecret
from client.site_file import read_site
from client.site_journal import check_secret, open_journal, read_journal
from shared_models.configuration import ConfigurationError

FileOption = Annotated[
    Path | None,
    typer.Option(
        "--file", help="File with one Patient ID a line; without it they are read from the keyboard."
    ),
]

out = Console(highlight=False, soft_wrap=True)


def withdraw(config: ConfigOption = SITE_FILE, file: FileOption = None) -> None:
    """Exclude patients from now on, in running studies too; what they have spent is not refunded."""
    from client.index_page import PAGE_NAME
    from client.withdrawal import known_patients, withdrawn
    from client.withdrawal import withdraw as exclude

    site = read_site(config)
    secret, journal = SiteSecret.load(site.state), open_journal(site)
    check_secret(journal, secret)
    patients = _patient_ids(file)
    pseudonyms = [secret.pseudonym("patient", patient) for patient in patients]
    known = known_patients(site.state)
    fresh = exclude(journal, pseudonyms)
    page = site.state / PAGE_NAME
    if fresh and page.exists():  # it may show an image of such a patient
        page.unlink()
        out.print(
            f"{page} was deleted, since it shows images; collegium-client index makes it again.", markup=False
        )
    out.print(
        f"{fresh} of {len(patients)} patients are excluded from now on, {len(patients) - fresh} were before; "
        f"{len(withdrawn(journal))} in all."
    )
    if known is None:
        out.print(
            "Whether these are IDs of patients here is not known yet: run collegium-client index, then this again.",
            style="yellow",
        )
    strange = [number for number, name in enumerate(pseudonyms, start=1) if known and name not in known]
    if strange:
        lines = ", ".join(map(str, strange[:20])) + (", …" if len(strange) > 20 else "")
        out.print(
            f"No patient of this site has the ID on line {lines}: look for misspellings. It is excluded all the same; "
            "a patient whose images came after the last collegium-client index is not known here either.",
            style="yellow",
        )
    out.print("See what each could have contributed to:  collegium-client patient")


def patient(
    config: ConfigOption = SITE_FILE,
    file: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which rounds of which runs a patient could have contributed to. The answer is for this hospital only."""
    from client.withdrawal import contributions, withdrawn

    site = read_site(config)
    secret, journal = SiteSecret.load(site.state), read_journal(site)
    check_secret(journal, secret)
    approvals = Approvals(journal, site.state)
    gone = withdrawn(journal)
    answers = []
    for number, identifier in enumerate(_patient_ids(file), start=1):
        pseudonym = secret.pseudonym("patient", identifier)
        found = contributions(site.state, journal, approvals, pseudonym)
        answers.append(
            {
                "line": number,
                "withdrawn": gone[pseudonym].time if pseudonym in gone else None,
                "runs": [
                    {"run": one.run_id, "study": one.study_hash, "role": one.role.value, "rounds": one.rounds}
                    for one in found
                ],
            }
        )
        if as_json:
            continue
        out.print(
            f"Patient on line {number}:"
            + (f" withdrew on {gone[pseudonym].time[:19]}" if pseudonym in gone else "")
        )
        for one in found:
            rounds = f"rounds {one.rounds[0]} to {one.rounds[-1]}" if one.rounds else "no round"
            out.print(f"  {one.run_id}: {one.role.value}, {rounds}", markup=False)
        if not found:
            out.print("  in no run of this site")
    if as_json:
        typer.echo(json.dumps(answers, indent=2))


def _patient_ids(file: Path | None) -> list[str]:
    try:
        text = sys.stdin.read() if file is None else file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file or 'the input'}: is not UTF-8 text; save it as UTF-8") from error
    found = [name for line in text.removeprefix("\ufeff").split("\n") if (name := normalised(line))]
    if not found:
        raise ConfigurationError("no Patient ID was given; write one a line")
    return found
