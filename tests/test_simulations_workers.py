"""Jobs on several processes: what ends them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dicom_files import Hospital

from privacy.randomness import CryptographicGenerator
from simulations.local_exchange import shared_out
from simulations.workers import in_processes

PARENT = """
import sys, time
from pathlib import Path
from simulations.workers import in_processes
from tests.test_simulations_workers import sleeping

if __name__ == "__main__":
    list(in_processes(sleeping, [Path(sys.argv[1])], num_workers=1))
"""


def doubled(number: int) -> int:
    return 2 * number


def failing(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    time.sleep(60.0 if number > 3 else 0.0)
    return number


def first_noise(number: int) -> tuple[int, tuple[float, ...]]:
    time.sleep(0.3)  # so that each worker has some
    return os.getpid(), tuple(CryptographicGenerator.from_operating_system().normal(4))


def sleeping(mark: Path) -> None:
    mark.write_text(str(os.getpid()))
    time.sleep(300.0)


@pytest.mark.slow
def test_each_job_comes_back_with_what_came_of_it() -> None:
    assert dict(in_processes(doubled, [1, 2, 3], num_workers=2)) == {1: 2, 2: 4, 3: 6}


@pytest.mark.parametrize(
    ("sizes", "num_workers", "shares"),
    [
        ([9, 5, 4, 1], 2, [{"site-0", "site-3"}, {"site-1", "site-2"}]),
        ([1, 1, 1, 7], 2, [{"site-3"}, {"site-0", "site-1", "site-2"}]),
        ([0, 0, 0, 0], 2, [{"site-0", "site-2"}, {"site-1", "site-3"}]),
        ([2, 3], 2, [{"site-1"}, {"site-0"}]),
    ],
)
def test_workers_have_about_as_many_files_each(
    tmp_path: Path, sizes: list[int], num_workers: int, shares: list[set[str]]
) -> None:
    sites = []
    for number, size in enumerate(sizes):
        hospital = Hospital(tmp_path / f"site-{number}")
        (hospital.images / "deep").mkdir()
        for file in range(size):
            (hospital.images / "deep" / f"{file}.dcm").touch()
        sites.append(hospital.site().model_copy(update={"name": f"site-{number}"}))
    assert [{site.name for site in share} for share in shared_out(sites, num_workers=num_workers)] == shares


@pytest.mark.slow
def test_workers_that_are_copies_of_one_process_share_no_noise() -> None:
    drawn = dict(in_processes(first_noise, range(6), num_workers=3)).values()
    assert len({worker for worker, _ in drawn}) > 1
    assert len({noise for _, noise in drawn}) == 6


@pytest.mark.slow
def test_one_that_fails_ends_the_others() -> None:
    begun = time.monotonic()
    with pytest.raises(ValueError, match="three"):
        list(in_processes(failing, [3, 4, 5, 6], num_workers=2))
    assert time.monotonic() - begun < 50.0, "nobody waits for a job of a minute"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path, how: signal.Signals) -> None:
    script, mark = tmp_path / "parent.py", tmp_path / "worker"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script), str(mark)], env=environment) as parent:
        _wait(lambda: mark.exists() and mark.read_text() != "")
        worker = int(mark.read_text())
        assert _runs(worker)
        parent.send_signal(how)
    _wait(lambda: not _runs(worker))


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def _wait(until: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
