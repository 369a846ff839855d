"""The site's own result of a run: it stays at the site."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shared_models.tasks import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRound:
    """One round at this site: what it cost, how long it took, and how the incoming model did here."""

    round: int
    epsilon: float | None
    seconds: dict[str, float]


@dataclass(slots=True, kw_only=True)
class SiteResult:
    """Grows with the run and is written after each step; holds exact figures of this hospital alone."""

    site: str
    run_id: str
    study_hash: str
    privacy: str
    epsilon: float | None
    patients_found: int
    patients_used: int
    patients_by_role: dict[str, int]
    images_used: int
    files_found: int
    left_out: dict[str, int]
    prepare_seconds: float
    rounds: list[SiteRound] = field(default_factory=list)
    validation: dict[int, Metrics] = field(default_factory=dict)
    test: Metrics | None = None
    test_statistics: tuple[int, ...] | None = None

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all; readable by the site's user only."""
        write_json(path, asdict(self))


def write_json(path: Path, values: object) -> None:
    """Write *values* as JSON: a new file is synced and renamed, mode 0600."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=2, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
