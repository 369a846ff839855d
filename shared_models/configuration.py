"""Reading a TOML file into a frozen model, with every problem told at once."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shared_models.refused_keys import why_refused


class ConfigurationError(ValueError):
    """A configuration file cannot be used. The message lists every problem and how to mend it."""


class Frozen(BaseModel):
    """Base of all file models: frozen, strict, unknown keys and non-finite numbers refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


Model = TypeVar("Model", bound=Frozen)


def read_toml(path: Path, model: type[Model]) -> Model:
    """Read *path* and return it as *model*.

    Args:
        path: the TOML file.
        model: a frozen file model.

    Raises:
        ConfigurationError: the file is missing, is not TOML, or holds wrong, missing or unknown keys;
            every problem stands in the message with its key, its value, what is allowed and the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    return parse_toml(text, model, origin=str(path))


def parse_toml(text: str, model: type[Model], *, origin: str) -> Model:
    """Parse TOML *text* into *model*; *origin* names the text in messages. Raises ConfigurationError."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{origin}: is not valid TOML: {error}") from error
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_describe(dict(problem), text) for problem in error.errors(include_url=False)]
        heading = f"{origin}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConfigurationError("\n".join([heading, *problems])) from error


def _describe(problem: Mapping[str, Any], text: str) -> str:
    """One line of the message: where, which key, which value, what is allowed."""
    location = _without_tags(problem["loc"], text)
    key = ".".join(str(part) for part in location) or "(whole file)"
    line = line_of(text, location)
    where = f"line {line}" if line else "no line yet"
    kind, message = str(problem["type"]), str(problem["msg"]).removeprefix("Value error, ")
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return f"  {where}: {key}.kind {_about_kind(problem)}"
    if kind == "missing":
        return f"  {where}: {key} is missing; add it"
    value = problem["input"]
    reason = why_refused(str(location[-1]) if location else "", value)
    if kind == "extra_forbidden":
        return f"  {where}: {key} is not a known key; " + (reason or "remove it or correct its spelling")
    if isinstance(value, Mapping | BaseModel):
        return f"  {where}: {key}: {message}"
    return f"  {where}: {key} = {_shown(value)}: {reason or message}"


def _about_kind(problem: Mapping[str, Any]) -> str:
    """Of a table of which there are several kinds, and which says none of them."""
    context = problem.get("ctx", {})
    if "tag" not in context:
        return "is missing; add it"
    return f"= {_shown(context['tag'])}: must be one of {context['expected_tags']}"


def _without_tags(location: tuple[object, ...], text: str) -> tuple[object, ...]:
    """pydantic puts the chosen kind of a tagged union into the location; in the file it is no part of the key."""
    kinds = set(re.findall(r"\bkind\s*=\s*[\"']([^\"']+)[\"']", text))
    return tuple(part for part in location if part not in kinds)


def _shown(value: object) -> str:
    """The value as TOML-like text, short."""
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


_HEADER = re.compile(r"^\s*\[\[?\s*([A-Za-z0-9_.\-\"' ]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*[\"']?([A-Za-z0-9_.\-]+)[\"']?\s*=")


def line_of(text: str, location: tuple[object, ...]) -> int | None:
    """The line (from 1) of the key at *location*; of its table where the key itself is not there."""
    wanted = tuple(str(part) for part in location if not isinstance(part, int))
    indices = [part for part in location if isinstance(part, int)]
    nth = indices[0] if indices else 0
    section: tuple[str, ...] = ()
    best: int | None = None
    seen: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            section = tuple(part.strip(" \"'") for part in header.group(1).split("."))
            seen[section] = seen.get(section, -1) + 1
            if section == wanted[: len(section)] and (
                not line.lstrip().startswith("[[") or seen[section] == nth
            ):
                best = number
            continue
        if key := _KEY.match(line):
            full = section + tuple(key.group(1).split("."))
            in_array_table = seen.get(section, 0) != nth and section != wanted and len(indices) > 0
            if full == wanted[: len(full)] and (not in_array_table or len(section) == 0):
                best = number
                if full == wanted and (len(indices) == 0 or seen.get(section, 0) == nth):
                    return number
    return best
