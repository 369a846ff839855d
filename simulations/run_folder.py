"""The folder of a run: whose it is, and whether what it holds can be gone on with.

::

    OUT/.collegium-run          made by us; only such a folder is ever replaced
    OUT/scenario.json           what is run here, in which engine
    OUT/hospitals, OUT/work     images, and what hospitals and server would have on their disks
    OUT/work/baselines          models outside the federation, as far as they are, see `simulations.kept_baselines`
    OUT/result.json             written last: the run is complete
"""

import json
import shutil
from pathlib import Path
from typing import Literal, TypeAlias

from server.checkpoint import CheckpointError, read_checkpoint
from simulations.scenario import Scenario

MARKER = ".collegium-run"
SCENARIO = "scenario.json"
WORK, BASELINES = "work", "baselines"


Engine: TypeAlias = Literal["local", "deployed"]


class OutputFolderError(ValueError):
    """The output folder cannot be used."""


def claim(out: Path, scenario: Scenario, engine: Engine, *, overwrite: bool) -> None:
    """Make *out* a new, empty folder with our marker, for this scenario.

    Raises:
        OutputFolderError: it holds something else, or an earlier run that may not be replaced.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / MARKER).exists():
            raise OutputFolderError(f"{out}: exists and is no earlier run; choose another --out")
        if not overwrite:
            raise OutputFolderError(
                f"{out}: holds an earlier run; choose another --out, add --resume to go on with it, or --overwrite "
                "to replace it"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text(
        "A folder that collegium-simulate run made, and may replace.\n", encoding="utf-8"
    )
    (out / SCENARIO).write_text(_noted(scenario, engine), encoding="utf-8")


def _noted(scenario: Scenario, engine: Engine) -> str:
    return json.dumps({"engine": engine, "scenario": scenario.model_dump(mode="json")})


def reclaim(out: Path, scenario: Scenario) -> Path | None:
    """Take up the run of the local engine in *out*: return its checkpoint, or None where no round was begun.

    Raises:
        OutputFolderError: there is no run of this scenario in it, or none that can be gone on with.
    """
    if not (out / MARKER).exists():
        raise OutputFolderError(
            f"{out}: holds no run to go on with; leave --resume out to begin one there, or name its folder with --out"
        )
    try:
        of = (out / SCENARIO).read_text(encoding="utf-8")
    except OSError:
        raise OutputFolderError(
            f"{out}: the run was made by an older version, which did not note its scenario; begin anew with --overwrite"
        ) from None
    if of == _noted(scenario, "deployed"):
        raise OutputFolderError(
            f"{out}: holds a run of the deployed engine, which cannot be gone on with; choose another --out, or begin "
            "anew with --overwrite"
        )
    if of != _noted(scenario, "local"):
        raise OutputFolderError(
            f"{out}: holds a run of another scenario, or of this one before it was changed; choose another --out, or "
            "begin anew with --overwrite"
        )
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
