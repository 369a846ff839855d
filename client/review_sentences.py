"""What a review is made of: sections of sentences, and how figures are written in them."""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Kind = Literal["plain", "warning", "refusal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """One sentence or short paragraph; *kind* says how loud it is."""

    text: str
    kind: Kind = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading and what stands below it."""

    title: str
    sentences: tuple[Sentence, ...]


def plain(text: str) -> Sentence:
    """A sentence as any other."""
    return Sentence(text=text)


def warning(text: str) -> Sentence:
    """A sentence that nobody may overlook."""
    return Sentence(text=text, kind="warning")


def refusal(text: str) -> Sentence:
    """A sentence that says why the site would refuse."""
    return Sentence(text=text, kind="refusal")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 round``, ``1,200 rounds``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def at_most(value: float) -> str:
    """A cost, rounded up to two decimals, so that it is never told too small."""
    return f"{math.ceil(round(value * 100, 6)) / 100:.2f}" if math.isfinite(value) else "without limit"


def share(value: float) -> str:
    """A probability in per cent, rounded up to two decimals."""
    return f"{math.ceil(round(value * 10_000, 6)) / 100:.2f} %"


def num_bytes(number: int) -> str:
    """A number of bytes, and in larger units where that reads better."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number:,} bytes ({number / size:.1f} {unit})"
    return f"{number:,} bytes"


def ago(time: datetime, now: datetime) -> str:
    """How long ago, in days or hours."""
    hours = max(0, int((now - time).total_seconds() // 3600))
    if hours >= 48:
        return f"{hours // 24} days ago"
    return f"{counted(hours, 'hour')} ago" if hours else "less than an hour ago"
