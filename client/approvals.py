"""Which studies, and where the policy wants it which runs, somebody at this hospital has approved.

A decision is an entry of the site's journal: signed, bound to the study's hash, with who made it and why. The last one
counts. The approved study itself lies beside the journal, under its hash, which is checked whenever it is read.
"""

import getpass
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from client.private_file import replace_private_file
from client.site_journal import APPROVAL
from privacy.journal import Journal, JournalError
from shared_models.configuration import ConfigurationError
from shared_models.study import Study, canonical_json

Verdict = Literal["approved", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision on a study, or on one run of it.

    Attributes:
        run_id: of the run that it is about; None where it is about the study.
        reason: free text; may be empty in an approval.
        by: who decided, as their user on this machine is called.
        signature: the consortium's on the proposal; None where the study came without.
        time: UTC, ISO 8601.
    """

    study_hash: str
    study_name: str
    verdict: Verdict
    reason: str
    by: str
    run_id: str | None = None
    signature: str | None = None
    time: str = ""


class Approvals:
    """The decisions of one hospital.

    Args:
        journal: holds them.
        state: the site's state folder; the studies lie in its folder ``studies``.
    """

    def __init__(self, journal: Journal, state: Path) -> None:
        self._journal = journal
        self._folder = state / "studies"

    def decisions(self) -> tuple[Decision, ...]:
        """All decisions, oldest first."""
        entries = self._journal.entries(APPROVAL)
        try:
            return tuple(Decision(**{**entry.body, "time": entry.time}) for entry in entries)  # type: ignore[arg-type]
        except TypeError as error:
            raise JournalError("the journal holds a decision of another version of Collegium") from error

    def decide(
        self,
        study: Study,
        verdict: Verdict,
        *,
        reason: str = "",
        run_id: str | None = None,
        signature: str | None = None,
        by: str | None = None,
    ) -> Decision:
        """Write a decision down; it counts from now on. Raises JournalError or OSError where it cannot be."""
        decision = Decision(
            study_hash=study.hash,
            study_name=study.name,
            verdict=verdict,
            reason=reason,
            by=by if by is not None else _this_user(),
            run_id=run_id,
            signature=signature,
        )
        replace_private_file(self._folder / f"{study.hash}.json", canonical_json(study))
        body = asdict(decision)
        del body["time"]
        entry = self._journal.append(APPROVAL, body)
        return Decision(**{**body, "time": entry.time})

    def last(self, study_hash: str, run_id: str | None = None) -> Decision | None:
        """The decision that counts on the study, or on one run of it."""
        return _last(self.decisions(), study_hash, run_id)

    def standing(self, study_hash: str, run_id: str) -> tuple[Decision | None, Decision | None]:
        """The decisions that count: on the study, and on this run of it."""
        decisions = self.decisions()
        return _last(decisions, study_hash, None), _last(decisions, study_hash, run_id)

    def is_approved(self, study_hash: str, run_id: str | None = None) -> bool:
        """Whether the study, or one run of it, is approved now."""
        last = self.last(study_hash, run_id)
        return last is not None and last.verdict == "approved"

    def approved(self) -> tuple[Study, ...]:
        """The studies that are approved now, in the order of their first decision."""
        hashes = dict.fromkeys(one.study_hash for one in self.decisions() if one.run_id is None)
        return tuple(self.study(study_hash) for study_hash in hashes if self.is_approved(study_hash))

    def approved_before(self, study: Study) -> Decision | None:
        """The last approval of another version of this study, by its name; None where there was none."""
        others = [
            one
            for one in self.decisions()
            if one.study_name == study.name
            and one.study_hash != study.hash
            and one.run_id is None
            and one.verdict == "approved"
        ]
        return others[-1] if others else None

    def study(self, study_hash: str) -> Study:
        """The study of that hash, on which there was a decision.

        Raises:
            ConfigurationError: its file is missing or was changed.
        """
        path = self._folder / f"{study_hash}.json"
        try:
            study = Study.model_validate_json(path.read_bytes(), strict=False)
        except (OSError, ValidationError) as error:
            raise ConfigurationError(
                f"{path}: the approved study cannot be read; review its proposal again: collegium-client review"
            ) from error
        if study.hash != study_hash:
            raise ConfigurationError(
                f"{path}: is another study than the one that was approved: the file was changed. Review the proposal "
                "again: collegium-client review"
            )
        return study


def _last(decisions: tuple[Decision, ...], study_hash: str, run_id: str | None) -> Decision | None:
    about = [one for one in decisions if (one.study_hash, one.run_id) == (study_hash, run_id)]
    return about[-1] if about else None


def _this_user() -> str:
    """The name of this unix user, or its uid where it has no account."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
