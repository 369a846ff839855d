"""Whether a person sits at the terminal, and asking them."""

import sys

import typer

from shared_models.configuration import ConfigurationError


def on_terminal() -> bool:
    """Whether this command was started by a person who can be asked something."""
    return sys.stdin.isatty()


def confirmed(question: str, *, yes: bool) -> None:
    """Return where the person agrees, or said ``--yes`` beforehand.

    Raises:
        ConfigurationError: there is nobody to ask.
        typer.Abort: they do not agree.
    """
    if yes:
        return
    if not on_terminal():
        raise ConfigurationError(f"{question} There is no terminal to ask on: say --yes. Nothing was changed")
    typer.confirm(question, abort=True)
