"""What ``collegium-client init`` asks on a terminal where an option was not given."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import click
from cryptography import x509
from pydantic import TypeAdapter, ValidationError

from client.site_file import LabelKey, server_address
from shared_models.identity_keys import IdentityKeyError, read_public_key
from shared_models.study import Slug
from shared_models.terminal import on_terminal

Check = Callable[[str], str]
"""Returns the answer as it is to be used, or raises ValueError in words."""


def asked(option: str, question: str, check: Check, *, unless: str | None = None) -> Callable[[], str | None]:
    """What gives an option's value where the command line does not: a question, again until the answer is good.

    Without a terminal the option is missing, as any required one. Where the option *unless* is given, it is not needed.
    """

    def checked(answer: str) -> str:
        try:
            return check(answer.strip())
        except ValueError as error:
            raise click.UsageError(str(error)) from error

    def ask() -> str | None:
        context = click.get_current_context(silent=True)
        if unless is not None and context is not None and context.params.get(unless) is not None:
            return None
        if not on_terminal():
            other = f" (or '--{unless.replace('_', '-')}')" if unless else ""
            raise click.MissingParameter(ctx=context, param_hint=f"'{option}'{other}", param_type="option")
        value: str = click.prompt(question, value_proc=checked)
        return value

    return ask


def a_name(answer: str) -> str:
    """A hospital's name."""
    try:
        TypeAdapter(Slug).validate_python(answer)
    except ValidationError as error:
        raise ValueError("small letters, digits and hyphens, at most 63; first a letter or digit") from error
    return answer


def an_address(answer: str) -> str:
    """``HOST:PORT``."""
    try:
        return server_address(answer)
    except ValueError as error:
        raise ValueError(f'"{answer}" {error}') from error


def a_label_key(answer: str) -> str:
    """One of the DICOM attributes that a labels file may go by."""
    if answer not in get_args(LabelKey):
        raise ValueError(f"one of {', '.join(get_args(LabelKey))}")
    return answer


def a_file(answer: str) -> str:
    """The path of a file that is there."""
    path = Path(answer).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    return str(path)


def a_folder(answer: str) -> str:
    """The path of a folder that is there."""
    path = Path(answer).expanduser()
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder")
    return str(path)


def a_certificate(answer: str) -> str:
    """The path of a PEM certificate."""
    path = a_file(answer)
    try:
        x509.load_pem_x509_certificates(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a PEM certificate; it is the coordinator's ca.pem") from error
    return path


def a_root_key(answer: str) -> str:
    """The path of a file with the consortium's root public key."""
    path = a_file(answer)
    try:
        read_public_key(Path(path))
    except IdentityKeyError as error:
        raise ValueError(f"{error}; it is the coordinator's root.pub") from error
    return path
