"""docs/three-hospitals.sh, run as it stands in an empty folder: from nothing to a trained model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared_models.processes import free_port

pytestmark = [pytest.mark.deployed, pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).parents[1] / "docs" / "three-hospitals.sh"
NAMES = ("hospital-1", "hospital-2", "hospital-3")


@pytest.mark.thorough
def test_the_script_leads_from_nothing_to_a_trained_model_at_three_hospitals_over_tls(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PORT": str(free_port()),
        "HOME": str(tmp_path),
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
    }
    work = tmp_path / "empty"
    work.mkdir()
    done = subprocess.run(
        ["bash", str(SCRIPT)],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    (folder,) = (work / "coordinator" / "state" / "runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert [tuple(entry["survivors"]) for entry in result["rounds"]] == [NAMES] * 4
    assert (folder / "model.safetensors").stat().st_size > 0
    assert "and the journal holds what each is about" in done.stdout
    for name in NAMES:
        assert f'"{name}" is admitted' in done.stdout
        state = work / name / "site" / "state"
        journal = json.loads(
            subprocess.run(
                [
                    "collegium-client",
                    *("journal", "show", "--json", "--last", "1000"),
                    *("--config", str(work / name / "site" / "site.toml")),
                ],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        kinds = [entry["kind"] for entry in journal]
        assert kinds.count("approval") == 1
        assert kinds.count("receipts") == 5, "four rounds and the final test"
        assert kinds.count("spent") == 5
        assert not (state / "site.json").exists(), "the site was ended"
