"""The folder of a run: whose it is, and whether what it holds can be gone on with.

::

    OUT/.collegium-run          made by us; only such a folder is ever replaced
    OUT/scenario.json           what is run here, in which engine, on which hospitals, with which versions
    OUT/hospitals, OUT/work     images, and what hospitals and server would have on their disks
    OUT/work/baselines          models outside the federation, as far as they are, see `simulations.kept_baselines`
    OUT/result.json             written last: the run is complete
"""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import ValidationError

from server.checkpoint import CheckpointError, read_checkpoint
from server.result import versions
from shared_models.configuration import Frozen
from simulations.preparation.hospitals import RECORD_NAME
from simulations.scenario import Scenario

MARKER = ".collegium-run"
SCENARIO = "scenario.json"
RESULT, WORK, BASELINES = "result.json", "work", "baselines"


Engine: TypeAlias = Literal["local", "deployed"]


class OutputFolderError(ValueError):
    """The output folder cannot be used."""


class Noted(Frozen):
    """``scenario.json``. ``hospitals`` is the folder given, ``record`` the SHA-256 of its ``hospitals.json``."""

    engine: Engine
    scenario: Scenario
    hospitals: str | None
    record: str | None
    versions: dict[str, str]

    @classmethod
    def of(cls, scenario: Scenario, engine: Engine, hospitals: Path | None) -> "Noted":
        """What a run of today notes."""
        record = None
        if hospitals is not None and (hospitals / RECORD_NAME).exists():
            record = hashlib.sha256((hospitals / RECORD_NAME).read_bytes()).hexdigest()
        folder = None if hospitals is None else str(hospitals.resolve())
        return cls(engine=engine, scenario=scenario, hospitals=folder, record=record, versions=versions())


def claim(out: Path, noted: Noted, *, overwrite: bool) -> None:
    """Make *out* a new, empty folder with our marker, for this run.

    Raises:
        OutputFolderError: it holds something else, an earlier run that may not be replaced, or one that is going on.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / MARKER).exists():
            raise OutputFolderError(f"{out}: exists and is no earlier run; choose another --out")
        if not overwrite:
            raise OutputFolderError(
                f"{out}: holds an earlier run; choose another --out, add --resume to go on with it, or --overwrite "
                "to replace it"
            )
        with held(out):
            shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text(
        "A folder that collegium-simulate run made, and may replace.\n", encoding="utf-8"
    )
    (out / SCENARIO).write_text(noted.model_dump_json(), encoding="utf-8")


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep every other process out of the run in *out*, which is there. Raises OutputFolderError."""
    with (out / MARKER).open("r", encoding="utf-8") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputFolderError(
                f"{out}: a run is going on in it; end it first, or choose another --out"
            ) from None
        yield


def check_resumable(out: Path, noted: Noted) -> dict[str, str]:
    """Check that *out* holds a run of the local engine that *noted* describes; return the versions that began it.

    Raises:
        OutputFolderError: there is no run of this scenario in it, or none that can be gone on with.
    """
    if not (out / MARKER).exists():
        raise OutputFolderError(
            f"{out}: holds no run to go on with; leave --resume out to begin one there, or name its folder with --out"
        )
    before = _noted_in(out)
    if before.engine != "local":
        raise OutputFolderError(
            f"{out}: holds a run of the deployed engine, which cannot be gone on with; choose another --out, or begin "
            "anew with --overwrite"
        )
    if before.scenario != noted.scenario:
        raise OutputFolderError(
            f"{out}: holds a run of another scenario, or of this one before it was changed; choose another --out, or "
            "begin anew with --overwrite"
        )
    if before.hospitals != noted.hospitals:
        was = "those of its own" if before.hospitals is None else f"those in {before.hospitals}"
        raise OutputFolderError(
            f"{out}: was begun with other hospitals, {was}; give the same --hospitals as before"
        )
    if before.record != noted.record:
        raise OutputFolderError(
            f"{out}: the hospitals in {noted.hospitals} were prepared anew since; begin anew with --overwrite"
        )
    if (out / RESULT).exists() and begun(out) is None:
        raise OutputFolderError(
            f"{out}: is complete, but its folder {WORK} is gone, without which nothing can be added; choose another "
            "--out, or begin anew with --overwrite"
        )
    return before.versions


def _noted_in(out: Path) -> Noted:
    try:
        return Noted.model_validate_json((out / SCENARIO).read_bytes(), strict=False)
    except (OSError, ValidationError):
        raise OutputFolderError(
            f"{out}: the run was made by another version of Collegium, whose notes cannot be read; begin anew with "
            "--overwrite"
        ) from None


def reclaim(out: Path) -> Path | None:
    """Return the checkpoint of the run in *out*; None where no round was begun, and what there is of it is removed."""
    found = begun(out)
    if found is None:
        shutil.rmtree(out / WORK, ignore_errors=True)
    return found


def begun(out: Path) -> Path | None:
    """The checkpoint of the server's run in *out*; None where none was begun."""
    found = sorted((out / WORK / "server" / "state" / "runs").glob("*/checkpoint.safetensors"))
    return found[0] if found else None


def worth_keeping(out: Path, scenario: Scenario) -> bool:
    """Whether at least one round was made in *out*, by an engine whose runs can be gone on with."""
    checkpoint = begun(out)
    if checkpoint is None or scenario.faults:
        return False
    try:
        return bool(read_checkpoint(checkpoint, study_hash=scenario.study.hash)[0].rounds)
    except CheckpointError:
        return False
