"""What a benchmark gives: rows whose ratio is against the baseline of their case, printed and written as JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from server.checkpoint import write_atomically
from simulations.benchmarks.machine import Machine

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant of one case.

    Attributes:
        case: what was done; its variants did the same with the same input, in the same run.
        variant: which code did it.
        value: median of the repetitions, in *unit*.
        ratio: value over the value of the case's baseline; the baseline's own is 1.
        low: smallest of the repetitions.
        high: largest of the repetitions.
        repetitions: how many values the median is taken of.
    """

    case: str
    variant: str
    value: float
    unit: str
    ratio: float
    low: float
    high: float
    repetitions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark. *method* says in a sentence what is measured and how; *measure* takes ``quick``."""

    name: str
    title: str
    method: str
    measure: Callable[[bool], tuple[Row, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A benchmark that was run. *quick* figures show that it works and mean nothing else."""

    benchmark: Benchmark
    rows: tuple[Row, ...]
    started: datetime
    seconds: float
    quick: bool
    machine: Machine


def rows_of(
    case: str, unit: str, samples: Mapping[str, Sequence[float]], *, baseline: str
) -> tuple[Row, ...]:
    """Return one row a variant, in their order.

    Args:
        case: what was done.
        unit: of the samples.
        samples: the repetitions of each variant, at least one.
        baseline: the variant that the ratios are against.

    Raises:
        ValueError: *baseline* is no variant, a variant has no sample, or the baseline's median is not positive.
    """
    if baseline not in samples:
        raise ValueError(f"baseline is {baseline!r}; must be one of {', '.join(samples)}")
    if empty := [variant for variant, values in samples.items() if not values]:
        raise ValueError(f"{case}: no sample of {', '.join(empty)}")
    base = median(samples[baseline])
    if not base > 0.0:
        raise ValueError(f"{case}: the baseline's median is {base} {unit}; must be above 0")
    return tuple(
        Row(
            case=case,
            variant=variant,
            value=median(values),
            unit=unit,
            ratio=median(values) / base,
            low=min(values),
            high=max(values),
            repetitions=len(values),
        )
        for variant, values in samples.items()
    )


def show(outcome: Outcome, console: Console) -> None:
    """Print the rows as a table."""
    name = outcome.benchmark.name + (" (quick: the figures mean nothing)" if outcome.quick else "")
    table = Table(
        title=f"{name}: {outcome.benchmark.title}", caption=outcome.benchmark.method + "; n: repetitions"
    )
    for column in ("case", "variant"):
        table.add_column(column, no_wrap=column == "variant")
    for column in ("min", "median", "max"):
        table.add_column(column, justify="right")
    table.add_column("unit")
    for column in ("ratio", "n"):
        table.add_column(column, justify="right")
    previous = None
    for row in outcome.rows:
        if previous not in (None, row.case):
            table.add_section()
        figures = (f"{value:.4g}" for value in (row.low, row.value, row.high))
        shown = "" if row.case == previous else row.case
        table.add_row(shown, row.variant, *figures, row.unit, f"{row.ratio:.2f}", str(row.repetitions))
        previous = row.case
    console.print(table)


def write(outcome: Outcome, folder: Path) -> Path:
    """Write ``folder/NAME.json``, whole or not at all, and return its path."""
    from server.result import versions

    values = {
        "schema": SCHEMA,
        "name": outcome.benchmark.name,
        "title": outcome.benchmark.title,
        "method": outcome.benchmark.method,
        "quick": outcome.quick,
        "started": outcome.started.isoformat(timespec="seconds"),
        "seconds": round(outcome.seconds, 1),
        "machine": asdict(outcome.machine),
        "versions": versions(),
        "rows": [asdict(row) for row in outcome.rows],
    }
    path = folder / f"{outcome.benchmark.name}.json"
    write_atomically(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    return path
