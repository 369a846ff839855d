"""``collegium-client card``: what is known of a trained model, from its own file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from client.options import JsonOption

if TYPE_CHECKING:
    from client.prediction.card_sections import CardSection, CardTable

FAILURE = 1

out = Console(highlight=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)
_STYLES = {"plain": "bold", "note": "bold yellow", "alarm": "bold red"}


def card(
    model: Annotated[Path, typer.Argument(help="A model.safetensors.", show_default=False)],
    html: Annotated[
        Path | None, typer.Option(help="Write the card as a page to this file.", dir_okay=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's card: what it is, how it was trained, what its test showed, and what it is not for.

    Exit status: 0, or 1 where the file cannot be used or its card and weights do not belong together.
    """
    from client.prediction.card_page import write_card_page
    from client.prediction.card_sections import sections_of
    from shared_models.model_file import ModelFileError, read_model

    try:
        found = read_model(model)
    except ModelFileError as error:
        err.print(str(error), style="red", markup=False)
        raise typer.Exit(FAILURE) from error
    if html is not None:
        write_card_page(html, found)
    if as_json:
        typer.echo(json.dumps({"digest": found.digest, "card": json.loads(found.card.to_json())}, indent=2))
        return
    for section in sections_of(found):
        _print(section)
    if html is not None:
        out.print(f"The same as a page: {html}", markup=False, soft_wrap=True)


def _print(section: "CardSection") -> None:
    out.print(section.title, style=_STYLES[section.kind], markup=False)
    for sentence in section.sentences:
        out.print(Padding(_plain(sentence), (0, 0, 0, 2)))
    for table in section.tables:
        out.print(Padding(_table(table), (0, 0, 0, 2)))
    out.print()


def _table(table: "CardTable") -> Table:
    shown = Table(title=_plain(table.caption) if table.caption else None, title_justify="left")
    for number, heading in enumerate(table.headings):
        shown.add_column(_plain(heading), justify="left" if number == 0 else "right", no_wrap=number > 0)
    for row in table.rows:
        shown.add_row(*map(_plain, row))
    return shown


def _plain(text: str) -> Text:
    """As it is: brackets are no markup."""
    return Text(text)
