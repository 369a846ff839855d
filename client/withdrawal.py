"""Patients who withdrew: excluded from now on, and what they could have contributed to before.

The journal is the list, by pseudonym: an entry cannot be taken out unnoticed. What a patient has spent is not refunded.
All of this stays at the site.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from client.approvals import Approvals
from client.index_report import INDEX_NAME
from client.private_file import replace_private_file
from client.roles import Role
from client.site_journal import WITHDRAWN
from privacy.journal import Entry, Journal
from privacy.ledger import Ledger
from shared_models.study import Study

if TYPE_CHECKING:
    from client.patients import PatientSet

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


def withdrawn(journal: Journal) -> dict[str, Entry]:
    """Pseudonym → entry of the journal, of each patient who withdrew."""
    found: dict[str, Entry] = {}
    for entry in journal.entries(WITHDRAWN):
        found.setdefault(str(entry.body["patient"]), entry)
    return found


def known_patients(state: Path) -> set[str] | None:
    """Pseudonyms that the site has ever seen: in its index and in its runs. None where there is neither."""
    found: set[str] = set()
    sources = [state / INDEX_NAME, *state.glob(f"runs/*/{PATIENTS_NAME}")]
    there = [path for path in sources if path.exists()]
    for path in there:
        try:
            values = json.loads(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        if path.name == INDEX_NAME:
            found |= {str(image["patient"]) for image in values["images"]}
        else:
            found |= {name for names in values.values() for name in names}
    return found if there else None


def withdraw(journal: Journal, pseudonyms: Iterable[str]) -> int:
    """Exclude these patients from now on. Returns how many of them had not withdrawn before."""
    known = withdrawn(journal)
    fresh = [pseudonym for pseudonym in dict.fromkeys(pseudonyms) if pseudonym not in known]
    for pseudonym in fresh:
        journal.append(WITHDRAWN, {"patient": pseudonym})
    return len(fresh)


def remember_patients(folder: Path, patients: Mapping[Role, "PatientSet"]) -> None:
    """Write down who is in a run, in the run's folder at the site, mode 0600; who was in it once stays there."""
    values = {role.value: set(part.pseudonyms) for role, part in patients.items()}
    for role, names in _read_patients(folder / PATIENTS_NAME).items():
        values.setdefault(role, set()).update(names)
    listed = {role: sorted(names) for role, names in values.items()}
    replace_private_file(folder / PATIENTS_NAME, json.dumps(listed).encode("ascii"))


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
    withdrawal, ledger = withdrawn(journal).get(pseudonym), Ledger(journal)
    found = []
    for run in ledger.runs():
        patients = _read_patients(state / "runs" / run.run_id / PATIENTS_NAME)
        begun = [
            entry.round
            for entry in ledger.rounds(run.run_id)
            if withdrawal is None or entry.sequence < withdrawal.sequence
        ]
        for role in (Role(name) for name, names in patients.items() if pseudonym in names):
            of_role = _rounds_of(approvals.study(run.study_hash), role)
            rounds = tuple(number for number in begun if number in of_role)
            found.append(Contribution(run_id=run.run_id, study_hash=run.study_hash, role=role, rounds=rounds))
    return tuple(found)


def _rounds_of(study: Study, role: Role) -> Collection[int]:
    """Rounds in whose answers patients of the role may be; a model is validated with the next round's request."""
    if role is Role.TRAIN:
        return range(1, study.training.num_rounds + 1)
    if role is Role.TEST:
        return (study.test_round,)
    return tuple(number + 1 for number in study.evaluation.validation_rounds)


def _read_patients(path: Path) -> dict[str, list[str]]:
    try:
        values = json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return {}
    return {str(role): [str(name) for name in names] for role, names in values.items()}
