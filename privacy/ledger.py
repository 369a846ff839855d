"""The site's durable record of what was spent: written before training, never taken back."""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from privacy.accounting import EvaluationCost, TrainingCost, lifetime_epsilon

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
    run_id TEXT PRIMARY KEY, study_hash TEXT NOT NULL, sample_rate REAL NOT NULL,
    noise_multiplier REAL, delta REAL, noised_count INTEGER NOT NULL,
    evaluation_deviation REAL, num_evaluations INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS round (
    run_id TEXT NOT NULL REFERENCES run (run_id), round INTEGER NOT NULL, num_steps INTEGER NOT NULL,
    PRIMARY KEY (run_id, round)
) STRICT;
"""


class LedgerError(RuntimeError):
    """The ledger cannot be used; nothing may be trained until it can."""


class AlreadySpentError(LedgerError):
    """The round was begun before: its noise was drawn and its cost stands, so it is not begun again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRun:
    """One run as the ledger holds it.

    Attributes:
        noise_multiplier, delta: None in a run without differential privacy.
        noised_count: drawn once, when the run was opened; exact without differential privacy.
        evaluation_deviation: noise on evaluation statistics; None where they are released exactly.
        num_evaluations: releases about one validation, or one test, patient in the whole run.
    """

    run_id: str
    study_hash: str
    sample_rate: float
    noise_multiplier: float | None
    delta: float | None
    noised_count: int
    evaluation_deviation: float | None
    num_evaluations: int


_RUN_COLUMNS = tuple(field.name for field in fields(LedgerRun))


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRound:
    """One attempted round and the steps it was charged for; the final test is a round without steps."""

    round: int
    num_steps: int


class Ledger:
    """Runs and the rounds that were begun, in one SQLite file.

    *Guarantee*: when `begin_round` returns, the charge is on disk; no method removes or lowers one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with self._transaction() as connection:
                connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise LedgerError(
                f"{path}: is not a usable ledger ({error}); restore it from a backup"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, isolation_level="IMMEDIATE", timeout=10.0)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            with connection:
                yield connection
        finally:
            connection.close()

    def run(self, run_id: str) -> LedgerRun | None:
        """Return the run, or None where it was never opened."""
        found = [run for run in self.runs() if run.run_id == run_id]
        return found[0] if found else None

    def runs(self) -> tuple[LedgerRun, ...]:
        """Return all runs in the order of their opening."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT * FROM run ORDER BY rowid").fetchall()
        return tuple(LedgerRun(**dict(zip(_RUN_COLUMNS, row, strict=True))) for row in rows)

    def rounds(self, run_id: str) -> tuple[LedgerRound, ...]:
        """Return the rounds of a run that were begun, in order."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT round, num_steps FROM round WHERE run_id = ? ORDER BY round", (run_id,)
            ).fetchall()
        return tuple(LedgerRound(round=number, num_steps=steps) for number, steps in rows)

    def open_run(self, run: LedgerRun) -> None:
        """Record a run and its noised count, durably. Raises LedgerError where the run is there already."""
        try:
            with self._transaction() as connection:
                connection.execute("INSERT INTO run VALUES (?, ?, ?, ?, ?, ?, ?, ?)", astuple(run))
        except sqlite3.IntegrityError as error:
            raise LedgerError(f"run {run.run_id} is in the ledger already") from error

    def begin_round(self, run_id: str, number: int, *, num_steps: int) -> None:
        """Charge a round, durably, before its training.

        Raises:
            AlreadySpentError: a round with this or a later number was begun before.
        """
        with self._transaction() as connection:
            (last,) = connection.execute(
                "SELECT max(round) FROM round WHERE run_id = ?", (run_id,)
            ).fetchone()
            if last is not None and number <= last:
                raise AlreadySpentError(
                    f"round {number} of {run_id}: round {last} was begun already; take a later one"
                )
            connection.execute("INSERT INTO round VALUES (?, ?, ?)", (run_id, number, num_steps))

    def training_cost(self, run_id: str) -> TrainingCost | None:
        """Return what a run has cost a training patient so far; None where it has no differential privacy.

        Raises:
            LedgerError: the run is unknown.
        """
        run = self.run(run_id)
        if run is None:
            raise LedgerError(f"run {run_id} is not in the ledger")
        if run.noise_multiplier is None:
            return None
        steps = sum(entry.num_steps for entry in self.rounds(run_id))
        return TrainingCost(
            sample_rate=run.sample_rate, noise_multiplier=run.noise_multiplier, num_steps=steps
        )

    def planned_cost(self, run_id: str, *, num_steps: int) -> TrainingCost | None:
        """Return what a run costs after *num_steps*, with the noise it was entered with; None without privacy."""
        cost = self.training_cost(run_id)
        return None if cost is None else cost.after(num_steps)

    def lifetime_epsilon(
        self,
        *,
        cap: float,
        delta: float,
        planned: tuple[TrainingCost | EvaluationCost, ...] = (),
        without: str | None = None,
    ) -> float:
        """Return what all runs, evaluations in full, and *planned* cost together at *delta*; *without* is left out.

        Infinite where any run had no differential privacy, or released evaluations exactly.
        """
        costs: list[TrainingCost | EvaluationCost] = list(planned)
        for run in self.runs():
            if run.run_id == without:
                continue
            cost = self.training_cost(run.run_id)
            if cost is None or run.evaluation_deviation is None:
                return math.inf
            costs.append(cost)
            costs.append(
                EvaluationCost(standard_deviation=run.evaluation_deviation, num_releases=run.num_evaluations)
            )
        return lifetime_epsilon(tuple(costs), cap=cap, delta=delta)
