"""Which models ``collegium-simulate modes`` trains, where their hospitals are, and the tables of what came of them."""

import json
import statistics
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

from rich.table import Table

from shared_models.configuration import ConfigurationError
from simulations.modes import WORDS, Job, Mode, On, Setting, Trained
from simulations.preparation.hospitals import prepare, read_hospitals
from simulations.scenario import Scenario
from simulations.work_folder import write_site

MOST_METRICS = 3
"""So many of what is told first of a model stand in a table."""
SCENARIO = "scenario.json"
Headings: TypeAlias = Sequence[tuple[str, str]]
"""As of a task: metrics and what they are called."""
CANDIDATE_SEED = 1_000_000
"""The first of the models that choose settings; those of a table have the seeds from 1."""


def jobs_of(
    kinds: Iterable[tuple[Mode, float | None]],
    *,
    fixed: Sequence[Setting],
    candidates: Sequence[Setting] | None,
    num_seeds: int,
) -> list[Job]:
    """The models of a table or, with *candidates*, of each of them that fits, evaluated on validation patients."""
    jobs = []
    for mode, epsilon in kinds:
        values: dict[str, float] = {}
        for setting in fixed:
            values |= setting.values if setting.fits(mode, epsilon) else {}
        first: int
        on: On
        first, on = (1, "test") if candidates is None else (CANDIDATE_SEED, "validation")
        tried = [Setting()] if candidates is None else candidates
        jobs += [
            Job(mode=mode, epsilon=epsilon, seed=seed, values=_ordered(values | one.values), on=on)
            for one in tried
            if one.fits(mode, epsilon)
            for seed in range(first, first + num_seeds)
        ]
    return jobs


def _ordered(values: dict[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(values.items()))


def prepared(scenario: Scenario, folder: Path) -> tuple[Path, ...]:
    """Prepare the scenario's hospitals in *folder*, where they are not there yet; return their ``site.toml``.

    Raises:
        ConfigurationError: the folder holds those of another scenario.
    """
    mark = folder / SCENARIO
    text = scenario.model_dump_json()
    if not mark.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ConfigurationError(f"{folder}: holds something else; choose another --out")
        hospitals = prepare(scenario.hospitals, folder / "hospitals", scenario.seed)
        for hospital in hospitals:
            write_site(folder / "sites" / hospital.name, hospital, scenario.study, seed=scenario.seed)
        mark.write_text(text, encoding="utf-8")
    elif mark.read_text(encoding="utf-8") != text:
        raise ConfigurationError(f"{folder}: holds models of another scenario; choose another --out")
    names = [hospital.name for hospital in read_hospitals(folder / "hospitals").hospitals]
    return tuple(folder / "sites" / name / "site.toml" for name in names)


def comparison(trained: Sequence[Trained], title: str, headings: Headings) -> Table:
    """One row for each mode and epsilon: mean over the seeds, and the range."""
    table = Table(title=f"{title}: test patients of all hospitals", title_justify="left")
    for column in ("mode", "ε", *_words(headings), "σ", "seconds"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for (mode, epsilon), members in groupby(sorted(trained, key=_place), key=_kind):
        group = list(members)
        table.add_row(
            WORDS[mode],
            "–" if epsilon is None else f"{epsilon:g}",
            *(_mean_and_range([one.metrics[name] for one in group]) for name, _ in headings[:MOST_METRICS]),
            "–" if group[0].noise_multiplier is None else f"{group[0].noise_multiplier:.2f}",
            f"{statistics.median(one.seconds for one in group):.0f}",
        )
    return table


def hospitals_table(trained: Sequence[Trained], headings: Headings) -> Table:
    """What is told first, on the test patients of each hospital: mean over the seeds, and the range."""
    names = sorted({name for one in trained for name in one.by_hospital})
    table = Table(title=f"{_words(headings)[0]} on the test patients of each hospital", title_justify="left")
    for column in ("mode", "ε", *names):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for (mode, epsilon), members in groupby(sorted(trained, key=_place), key=_kind):
        group = list(members)
        table.add_row(
            WORDS[mode],
            "–" if epsilon is None else f"{epsilon:g}",
            *(_mean_and_range([one.by_hospital[name][headings[0][0]] for one in group]) for name in names),
        )
    return table


def ranking(trained: Sequence[Trained], headings: Headings) -> Table:
    """One row for each candidate: mean over the seeds, and the range.

    The best of each mode and epsilon comes first, by the mean of what is told first, on validation patients.
    """
    table = Table(title="candidates, on validation patients of all hospitals", title_justify="left")
    for column in ("mode", "ε", "setting", *_words(headings)):
        table.add_column(column, justify="left" if column in ("mode", "setting") else "right")
    by_setting = [
        list(members) for _, members in groupby(sorted(trained, key=_place_and_values), key=_place_and_values)
    ]
    for group in sorted(by_setting, key=lambda group: (*_place(group[0]), -_mean_first(group, headings))):
        job = group[0].job
        table.add_row(
            job.mode,
            "–" if job.epsilon is None else f"{job.epsilon:g}",
            ", ".join(f"{key} = {value:g}" for key, value in job.values),
            *(_mean_and_range([one.metrics[name] for one in group]) for name, _ in headings[:MOST_METRICS]),
        )
    return table


def as_json(trained: Sequence[Trained]) -> str:
    """For scripts: one entry for each model."""
    return json.dumps(
        [
            {
                "mode": one.job.mode,
                "epsilon": one.job.epsilon,
                "seed": one.job.seed,
                "on": one.job.on,
                "setting": dict(one.job.values),
                "noise_multiplier": one.noise_multiplier,
                "metrics": one.metrics,
                "by_hospital": one.by_hospital,
                "seconds": one.seconds,
            }
            for one in sorted(trained, key=lambda one: (*_place(one), one.job.seed))
        ],
        indent=1,
    )


def _kind(one: Trained) -> tuple[Mode, float | None]:
    return one.job.mode, one.job.epsilon


def _place(one: Trained) -> tuple[float, int]:
    return one.job.epsilon or 0.0, list(WORDS).index(one.job.mode)


def _place_and_values(one: Trained) -> tuple[float, int, tuple[tuple[str, float], ...]]:
    return *_place(one), one.job.values


def _mean_first(group: Sequence[Trained], headings: Headings) -> float:
    return statistics.fmean(one.metrics[headings[0][0]] or 0.0 for one in group)


def _words(headings: Headings) -> tuple[str, ...]:
    return tuple(heading.partition(",")[0] for _, heading in headings[:MOST_METRICS])


def _mean_and_range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    if len(known) == 1:
        return f"{known[0]:.3f}"
    return f"{statistics.fmean(known):.3f} ({min(known):.3f}–{max(known):.3f})"
