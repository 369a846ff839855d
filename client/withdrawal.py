"""Patients who withdrew: excluded from now on, and what they could have contributed to before.

The journal is the list, by pseudonym: an entry cannot be taken out unnoticed. What a patient has spent is not refunded.
All of this stays at the site.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from client.approvals import Approvals
from client.patients import PatientSet
from client.private_file import replace_private_file
from client.roles import Role
from client.site_journal import WITHDRAWN
from privacy.journal import Journal
from privacy.ledger import Ledger
from shared_models.study import Study

PATIENTS_NAME = "patients.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one patient could have contributed to in one run.

    Attributes:
        role: the patient's in this run.
        rounds: those that were begun while the patient was in: in a training role each trained on a random sample
            that the patient may have been in; in the others those in which the model was evaluated.
    """

    run_id: str
    study_hash: str
    role: Role
    rounds: tuple[int, ...]


def withdrawn(journal: Journal) -> dict[str, str]:
    """Pseudonym → time (UTC, ISO 8601) of each patient who withdrew."""
    found: dict[str, str] = {}
    for entry in journal.entries(WITHDRAWN):
        found.setdefault(str(entry.body["patient"]), entry.time)
    return found


def withdraw(journal: Journal, pseudonyms: Iterable[str]) -> int:
    """Exclude these patients from now on. Returns how many of them had not withdrawn before."""
    known = withdrawn(journal)
    fresh = [pseudonym for pseudonym in dict.fromkeys(pseudonyms) if pseudonym not in known]
    for pseudonym in fresh:
        journal.append(WITHDRAWN, {"patient": pseudonym})
    return len(fresh)


def remember_patients(folder: Path, patients: Mapping[Role, PatientSet]) -> None:
    """Write down who is in a run, in the run's folder at the site, mode 0600."""
    values = {role.value: list(part.pseudonyms) for role, part in patients.items()}
    replace_private_file(folder / PATIENTS_NAME, json.dumps(values).encode("ascii"))


def contributions(
    state: Path, journal: Journal, approvals: Approvals, pseudonym: str
) -> tuple[Contribution, ...]:
    """What the patient could have contributed to, run by run.

    Args:
        state: the site's state folder.
        journal: the site's.
        approvals: know the studies.
        pseudonym: of the patient.

    Raises:
        ConfigurationError: an approved study's file is missing or was changed.
    """
    until, ledger = withdrawn(journal).get(pseudonym), Ledger(journal)
    found = []
    for run in ledger.runs():
        role = _role_in(state / "runs" / run.run_id / PATIENTS_NAME, pseudonym)
        if role is None:
            continue
        of_role = _rounds_of(approvals.study(run.study_hash), role)
        begun = (entry for entry in ledger.rounds(run.run_id) if until is None or entry.time <= until)
        rounds = tuple(entry.round for entry in begun if entry.round in of_role)
        found.append(Contribution(run_id=run.run_id, study_hash=run.study_hash, role=role, rounds=rounds))
    return tuple(found)


def _rounds_of(study: Study, role: Role) -> Collection[int]:
    """Rounds in whose answers patients of the role may be; a model is validated with the next round's request."""
    if role is Role.TRAIN:
        return range(1, study.training.num_rounds + 1)
    if role is Role.TEST:
        return (study.test_round,)
    return tuple(number + 1 for number in study.evaluation.validation_rounds)


def _role_in(path: Path, pseudonym: str) -> Role | None:
    try:
        values = json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return next((Role(role) for role, known in values.items() if pseudonym in known), None)
