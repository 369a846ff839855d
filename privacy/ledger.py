"""The privacy view of a site's journal: what was spent, written before training, never taken back."""

import math
import threading
from dataclasses import asdict, dataclass

from privacy.accounting import EvaluationCost, RunCost, TrainingCost, lifetime_epsilon
from privacy.journal import CREATED, RUN, SPENT, Entry, Journal, JournalError


class LedgerError(JournalError):
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
        mode: of privacy, as the study names it; None in entries from before it was recorded.
    """

    run_id: str
    study_hash: str
    sample_rate: float
    noise_multiplier: float | None
    delta: float | None
    noised_count: int
    evaluation_deviation: float | None
    num_evaluations: int
    mode: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRound:
    """One attempted round and the steps it was charged for; the final test is a round without steps.

    ``sequence`` is that of the journal's entry.
    """

    round: int
    num_steps: int
    sequence: int


class Ledger:
    """Runs and the rounds that were begun, as the journal holds them.

    *Guarantee*: when `begin_round` returns, the charge is on disk; no method removes or lowers one.

    Args:
        journal: where charges are written.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._turn = threading.RLock()
        self._seen = 0
        self._runs: dict[str, LedgerRun] = {}
        self._rounds: dict[str, list[LedgerRound]] = {}
        self._unknown_past = False
        self._refresh()

    def run(self, run_id: str) -> LedgerRun | None:
        """Return the run, or None where it was never opened."""
        return next((run for run in self.runs() if run.run_id == run_id), None)

    def runs(self) -> tuple[LedgerRun, ...]:
        """Return all runs in the order of their opening."""
        self._refresh()
        return tuple(self._runs.values())

    def rounds(self, run_id: str) -> tuple[LedgerRound, ...]:
        """Return the rounds of a run that were begun, in order."""
        self._refresh()
        return tuple(self._rounds.get(run_id, ()))

    def open_run(self, run: LedgerRun) -> None:
        """Record a run and its noised count, durably. Raises LedgerError where the run is there already."""
        with self._journal.exclusive():
            if self.run(run.run_id) is not None:
                raise LedgerError(f"run {run.run_id} is in the ledger already")
            self._journal.append(RUN, asdict(run))

    def begin_round(self, run_id: str, number: int, *, num_steps: int) -> None:
        """Charge a round, durably, before its training.

        Raises:
            AlreadySpentError: a round with this or a later number was begun before.
            LedgerError: the run is unknown.
        """
        with self._journal.exclusive():
            if self.run(run_id) is None:
                raise LedgerError(f"run {run_id} is not in the ledger")
            begun = self.rounds(run_id)
            if begun and number <= begun[-1].round:
                raise AlreadySpentError(
                    f"round {number} of {run_id}: round {begun[-1].round} was begun already; take a later one"
                )
            self._journal.append(SPENT, {"run_id": run_id, "round": number, "num_steps": num_steps})

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
        self, *, cap: float, delta: float, planned: RunCost | None = None, without: str | None = None
    ) -> float:
        """Return what all runs, evaluations in full, and *planned* cost together at *delta*; *without* is left out.

        Infinite where any run had no differential privacy, or released evaluations exactly, and where an earlier
        journal was lost: what it held is not known.
        """
        past = self.costs(without=() if without is None else (without,))
        if past is None:
            return math.inf
        return lifetime_epsilon((*(() if planned is None else (planned,)), *past), cap=cap, delta=delta)

    def costs(self, *, without: tuple[str, ...] = ()) -> tuple[RunCost, ...] | None:
        """Return what each run has cost so far, evaluations in full, but for those in *without*.

        None where that is without bound or not known, as in `lifetime_epsilon`.
        """
        costs = []
        for run in self.runs():
            if run.run_id in without:
                continue
            training = self.training_cost(run.run_id)
            if training is None or run.evaluation_deviation is None:
                return None
            evaluation = EvaluationCost(
                standard_deviation=run.evaluation_deviation, num_releases=run.num_evaluations
            )
            costs.append(RunCost(training=training, evaluation=evaluation))
        return None if self._unknown_past else tuple(costs)

    def _refresh(self) -> None:
        """Take in what the journal holds by now."""
        with self._turn:
            for entry in self._journal.entries(CREATED, RUN, SPENT, after=self._seen):
                self._take(entry)
                self._seen = entry.sequence

    def _take(self, entry: Entry) -> None:
        body = dict(entry.body)
        try:
            if entry.kind == CREATED:
                self._unknown_past = body["after_loss"] is not None
            elif entry.kind == RUN:
                run = LedgerRun(**body)  # type: ignore[arg-type]
                self._runs[run.run_id] = run
            else:
                spent = LedgerRound(round=body["round"], num_steps=body["num_steps"], sequence=entry.sequence)  # type: ignore[arg-type]
                self._rounds.setdefault(str(body["run_id"]), []).append(spent)
        except (KeyError, TypeError) as error:
            raise LedgerError(
                f"entry {entry.sequence} of the journal is of another version of Collegium"
            ) from error
