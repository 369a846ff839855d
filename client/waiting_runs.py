"""Runs that the server asked for, and that wait for somebody at this hospital (``policy.ask_each_run``)."""

from dataclasses import dataclass

from client.approvals import Approvals
from client.site_journal import REFUSED, REQUEST
from privacy.journal import Journal

AWAITING = "awaiting-approval"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRun:
    """A run on which nobody has decided yet. Times are UTC, ISO 8601; the server asks again and again."""

    run_id: str
    study_hash: str
    first_asked: str
    last_asked: str


def waiting_runs(journal: Journal, approvals: Approvals) -> tuple[WaitingRun, ...]:
    """The runs that wait, in the order in which they were asked for."""
    asked: dict[tuple[str, str], list[str]] = {}
    for entry in journal.entries(REFUSED):
        if entry.body["reason"] == AWAITING:
            key = (str(entry.body["run_id"]), str(entry.body["study_hash"]))
            asked.setdefault(key, []).append(entry.time)
    decided = {(one.run_id, one.study_hash) for one in approvals.decisions()}
    return tuple(
        WaitingRun(run_id=key[0], study_hash=key[1], first_asked=times[0], last_asked=times[-1])
        for key, times in asked.items()
        if key not in decided
    )


def study_of_run(journal: Journal, run_id: str) -> str | None:
    """Hash of the study that the server last asked this run of; None where it never asked for it."""
    entries = journal.entries(REQUEST)
    return next(
        (str(entry.body["study_hash"]) for entry in reversed(entries) if entry.body["run_id"] == run_id), None
    )
