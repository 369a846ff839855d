"""The site's own result of a run: it stays at the site."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from client.private_file import replace_private_file
from shared_models.tasks.task import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRound:
    """One round at this site: its number, the steps charged so far (None without privacy), seconds by phase."""

    round: int
    num_steps: int | None
    seconds: dict[str, float]


@dataclass(slots=True, kw_only=True)
class SiteResult:
    """Grows with the run and is written after each step; holds exact figures of this hospital alone.

    ``epsilon`` is known when the final test was made or the run was closed; until then the ledger says it.
    """

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

    @classmethod
    def read(cls, path: Path) -> "SiteResult | None":
        """Return what `write` wrote; None where there is nothing that can be read."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            rounds = [SiteRound(**entry) for entry in values.pop("rounds")]
            validation = {int(number): metrics for number, metrics in values.pop("validation").items()}
            test = values.pop("test_statistics")
            return cls(
                **values,
                rounds=rounds,
                validation=validation,
                test_statistics=None if test is None else tuple(test),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all; readable by the site's user only."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_private_file(path, json.dumps(asdict(self), indent=2, allow_nan=False).encode())
