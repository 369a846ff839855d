"""What a ``doctor`` command finds: one finding for each check, shown as one line or as JSON.

A check returns an `Outcome`, or raises `Wrong` or `NotChecked`. One that breaks in any other way is an error of its
own line; the others go on.
"""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias, TypeVar

State: TypeAlias = Literal["ok", "warning", "wrong", "not checked"]
MARKS: dict[State, str] = {"ok": "[✓]", "warning": "[!]", "wrong": "[✗]", "not checked": "[-]"}
COLOURS: dict[State, str] = {"ok": "green", "warning": "yellow", "wrong": "red", "not checked": "dim"}
LONGEST_FOREIGN_CHARACTERS = 100

T = TypeVar("T")


class Wrong(Exception):
    """Something is wrong. The message says what, where, and what to do."""


class NotChecked(Exception):
    """The check cannot be made now. The message says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found where nothing is wrong: ``ok``, or a ``warning`` with what to do."""

    state: Literal["ok", "warning"]
    message: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    state: State
    message: str


Check: TypeAlias = tuple[str, Callable[[], Outcome]]


def ok(message: str) -> Outcome:
    """Nothing is wrong."""
    return Outcome("ok", message)


def warning(message: str) -> Outcome:
    """It works, and somebody should look at it."""
    return Outcome("warning", message)


def needed(value: T | None, reason: str) -> T:
    """Return what an earlier check found. Raises NotChecked with the *reason* where it found nothing."""
    if value is None:
        raise NotChecked(reason)
    return value


def run_checks(checks: Iterable[Check]) -> Iterator[Finding]:
    """Make the checks in their order, each before the next is asked for, and yield what it found at once."""
    for name, check in checks:
        yield _made(name, check)


def _made(name: str, check: Callable[[], Outcome]) -> Finding:
    try:
        outcome = check()
    except Wrong as error:
        return Finding(name, "wrong", str(error))
    except NotChecked as error:
        return Finding(name, "not checked", f"not checked: {error}")
    except Exception as error:  # noqa: BLE001 - a broken check must not take the other checks with it
        reason = printable(f"{type(error).__name__}: {error}", 300)
        return Finding(name, "wrong", f"this check itself broke ({reason}); please report it")
    return Finding(name, outcome.state, outcome.message)


def failed(findings: Sequence[Finding]) -> bool:
    """Whether something is wrong; warnings, and checks that could not be made, are not."""
    return any(finding.state == "wrong" for finding in findings)


def shown(finding: Finding, width: int | None = None) -> str:
    """The finding as one line, broken at *width* characters where one is given."""
    text = f"{MARKS[finding.state]} {finding.check}: {finding.message}"
    if width is None:
        return " ".join(text.split())
    return textwrap.fill(
        text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def summary(findings: Sequence[Finding]) -> str:
    """The last line: how many findings there are of each kind."""
    counts = {state: sum(finding.state == state for finding in findings) for state in MARKS}
    words: dict[State, str] = {
        "wrong": "wrong",
        "warning": "warning" + "s" * (counts["warning"] != 1),
        "not checked": "not checked",
    }
    parts = [f"{counts[state]} {word}" for state, word in words.items() if counts[state]]
    return ", ".join(parts) if parts else f"Nothing is wrong: all {len(findings)} checks are ok."


def as_values(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """The findings for JSON: a list of ``{check, state, message}``."""
    return [asdict(finding) for finding in findings]


def printable(text: str, longest: int = LONGEST_FOREIGN_CHARACTERS) -> str:
    """A text that somebody else chose, without anything that a terminal would obey, and not endless."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"
