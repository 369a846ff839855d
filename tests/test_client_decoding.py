"""A file that crashes, hangs or floods a decoder costs that file only, and says so by name."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dicom_files import SECRET, Hospital, dataset, gradient, make_image, make_study, write

from client.decoding import DecoderDoesNotStart, DecodingWorker
from client.decoding_limits import Limits
from client.dicom_file import IDENTIFIER_KEYWORDS, Unusable
from client.dicom_image import read_image
from client.ingestion import ingest
from client.preparation import prepare
from client.reasons import Reason

GREY = make_image()
FAULTY = (sys.executable, "-P", str(Path(__file__).with_name("faulty_decoding.py")))
TIGHT = Limits(memory_bytes=2**29, processor_seconds=2, clock_seconds=100)


@pytest.fixture(scope="module")
def worker() -> Iterator[DecodingWorker]:
    with DecodingWorker(TIGHT, FAULTY) as made:
        yield made


def finding(worker: DecodingWorker, path: Path) -> Unusable:
    with pytest.raises(Unusable) as found:
        worker.prepare(path, GREY)
    assert found.value.__cause__ is None
    return found.value


def goes_on(worker: DecodingWorker, folder: Path) -> None:
    """The next file is prepared as if nothing had been."""
    path = write(folder / "good.dcm", dataset(gradient()))
    found = worker.prepare(path, GREY)
    np.testing.assert_array_equal(found.plane, prepare(read_image(path, GREY), GREY))
    assert not found.has_window


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "expected", "detail"),
    [
        ("segfault", Reason.DECODER_CRASHED, "SIGSEGV"),
        ("abort", Reason.DECODER_CRASHED, "SIGABRT"),
        ("exit", Reason.DECODER_CRASHED, "exit status 3"),
        ("spin", Reason.TOO_SLOW, "2 s of computing"),
        ("spin-in-c", Reason.TOO_SLOW, "2 s of computing"),
        ("eat", Reason.TOO_MUCH_MEMORY, ""),
        ("eat-in-c", Reason.TOO_MUCH_MEMORY, ""),
        ("killed", Reason.TOO_MUCH_MEMORY, "SIGKILL"),
        ("nan", Reason.DECODER_CRASHED, "an answer that cannot be"),
        ("large", Reason.DECODER_CRASHED, "an answer that cannot be"),
    ],
)
def test_a_file_that_ends_the_decoder_has_a_reason_and_the_next_one_is_read(
    tmp_path: Path, worker: DecodingWorker, kind: str, expected: Reason, detail: str
) -> None:
    found = finding(worker, tmp_path / f"{kind}.dcm")
    assert found.reason is expected
    assert detail in found.detail
    goes_on(worker, tmp_path)


@pytest.mark.slow
def test_a_decoder_that_waits_for_ever_is_ended_by_the_clock(tmp_path: Path) -> None:
    with DecodingWorker(Limits(clock_seconds=2), FAULTY) as worker:
        begun = time.perf_counter()
        found = finding(worker, tmp_path / "sleep.dcm")
        assert 1.5 < time.perf_counter() - begun < 60.0
        assert found.reason is Reason.TOO_SLOW
        assert found.detail == "More than 2 s."
        goes_on(worker, tmp_path)


@pytest.mark.slow
def test_the_process_is_used_again_for_files_that_are_merely_unusable(tmp_path: Path) -> None:
    with DecodingWorker(TIGHT) as worker:
        assert worker.num_starts == 0
        for number in range(5):
            goes_on(worker, tmp_path)
            (tmp_path / "text.dcm").write_bytes(b"text" * number)
            assert finding(worker, tmp_path / "text.dcm").reason is Reason.NOT_DICOM
        assert worker.num_starts == 1


@pytest.mark.slow
def test_processor_time_counts_for_each_file_and_not_for_all_together(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "one.dcm", dataset(gradient(1200, 1200)))
    with DecodingWorker(Limits(processor_seconds=1)) as worker:
        begun = time.process_time()
        used = 0.0
        while used < 2.5:
            worker.prepare(path, GREY)
            assert worker._process is not None
            fields = Path(f"/proc/{worker._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        assert time.process_time() - begun < 60.0
        assert worker.num_starts == 1


def test_what_a_file_makes_the_process_say_is_cut_and_cannot_steer_a_terminal(
    tmp_path: Path, worker: DecodingWorker
) -> None:
    detail = finding(worker, tmp_path / "talk.dcm").detail
    assert "\x1b" not in detail
    assert len(detail) < 300


def test_the_process_writes_no_file(tmp_path: Path, worker: DecodingWorker) -> None:
    finding(worker, tmp_path / "core.dcm")
    written = tmp_path / "written"
    assert not written.exists() or written.read_bytes() == b""


@pytest.mark.slow
def test_the_process_gets_no_secret_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLEGIUM_PASSPHRASE", "secret")
    with DecodingWorker(TIGHT, FAULTY) as worker:
        names = json.loads(finding(worker, tmp_path / "environment.dcm").detail)
        assert "COLLEGIUM_PASSPHRASE" not in names
        assert json.loads(finding(worker, tmp_path / "modules.dcm").detail) == []


@pytest.mark.slow
def test_a_process_that_died_between_two_files_costs_no_file(tmp_path: Path) -> None:
    with DecodingWorker(TIGHT, FAULTY) as worker:
        pid = int(finding(worker, tmp_path / "pid.dcm").detail)
        os.kill(pid, signal.SIGKILL)
        assert worker._process is not None
        worker._process.wait()
        goes_on(worker, tmp_path)
        assert worker.num_starts == 2


@pytest.mark.slow
def test_files_that_end_the_decoder_are_lines_of_the_index_like_others(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path / "hospital")
    rows = hospital.add_patients(range(4))
    for number, kind in enumerate(("abort", "eat", "good"), start=100):
        hospital.add(f"{kind[0]}/{kind}.dcm", dataset(gradient(), patient=f"PAT-{number:04d}"))
        rows.append((f"PAT-{number:04d}", "yes"))
    hospital.label(rows)
    workers: list[DecodingWorker] = []

    def made() -> DecodingWorker:
        workers.append(DecodingWorker(TIGHT, FAULTY))
        return workers[-1]

    found = ingest(hospital.site(), make_study(), SECRET, make_reader=made)
    index = found.index
    assert [worker.num_starts for worker in workers] == [2]  # the one that only ran out of memory goes on
    assert [image.path for image in index.images] == [*(f"{n:04d}.dcm" for n in range(4)), "g/good.dcm"]
    assert index.left_out_counts == {"decoder-crashed": 1, "too-much-memory": 1}
    assert sum(len(part.images) for part in found.patients.values()) == len(index.images)

    workers.clear()
    again = ingest(hospital.site(), make_study(), SECRET, make_reader=made)
    assert again.index == index
    assert [worker.num_starts for worker in workers] == [1], (
        "what crashed is remembered, what lacked memory is not"
    )


@pytest.mark.slow
def test_several_workers_run_side_by_side(tmp_path: Path) -> None:
    path = write(tmp_path / "one.dcm", dataset(gradient()))
    expected = prepare(read_image(path, GREY), GREY)
    found: list[bool] = []

    def work() -> None:
        with DecodingWorker() as worker:
            found.extend(bool((worker.prepare(path, GREY).plane == expected).all()) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 60


LIAR = """
import json, os, socket, sys
from client.decoding_process import HEADER, LENGTH, READY, received
with socket.socket(fileno=int(sys.argv[1])) as connection:
    connection.sendall(LENGTH.pack(1) + READY)
    while (request := received(connection)) is not None:
        path = os.fsdecode(bytes.fromhex(json.loads(request)["paths"][0]))
        reply = HEADER + open(path, "rb").read()
        connection.sendall(LENGTH.pack(len(reply)) + reply)
"""
TOLD = {
    "identifiers": dict.fromkeys(IDENTIFIER_KEYWORDS, "1"),
    "facts": {"scanner": "Maker", "identifying": {"patient": 1}},
    "person": {"PatientName": "A^B", "PatientBirthDate": "", "PatientSex": ""},
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "lie",
    [
        {"identifiers": {**TOLD["identifiers"], "PatientID": "\ud800"}},
        {"person": {**TOLD["person"], "PatientName": "\ud800"}},
        {"person": None},
        {"person": {}},
        {"person": {**TOLD["person"], "PatientName": 7}},
        {"person": {**TOLD["person"], "PatientName": "x" * 10_001}},
        {"facts": {"scanner": "<b>Maker</b>"}},
        {"facts": {"identifying": {"patient": -1}}},
        {"facts": {"identifying": {"patient": 2**40}}},
        {"facts": {"identifying": {"names": "Oftering"}}},
        {"facts": {"identifying": {"removed": "Oftering"}}},
        {"facts": {"identifying": "Oftering"}},
    ],
)
def test_what_cannot_be_said_of_a_header_is_not_believed(tmp_path: Path, lie: dict[str, object]) -> None:
    (tmp_path / "honest").write_text(json.dumps(TOLD))
    (tmp_path / "lie").write_text(json.dumps({**TOLD, **lie}))
    with DecodingWorker(program=[sys.executable, "-c", LIAR]) as worker:
        header = worker.header(tmp_path / "honest", make_image())
        assert header.person == TOLD["person"]
        assert header.facts.identifying.patient == 1
        with pytest.raises(Unusable) as caught:
            worker.header(tmp_path / "lie", make_image())
    assert caught.value.reason is Reason.DECODER_CRASHED
    assert "Oftering" not in str(caught.value)


@pytest.mark.slow
def test_closing_ends_the_process_even_in_the_middle_of_a_file(tmp_path: Path) -> None:
    worker = DecodingWorker(TIGHT, FAULTY)
    pid = int(finding(worker, tmp_path / "pid.dcm").detail)
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    worker.close()


def test_a_program_that_does_not_start_is_no_reason_against_a_file(tmp_path: Path) -> None:
    for program in ((sys.executable, "-c", "raise SystemExit(1)"), (str(tmp_path / "nothing"),)):
        worker = DecodingWorker(program=program)
        with pytest.raises(DecoderDoesNotStart, match="did not start"):
            worker.prepare(tmp_path / "one.dcm", GREY)


@pytest.mark.slow
def test_the_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from client.decoding import DecodingWorker\n"
        "from client.dicom_file import Unusable; from dicom_files import make_image\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"worker = DecodingWorker(program={FAULTY!r})\n"
        "try: worker.prepare(Path('pid.dcm'), make_image())\n"
        "except Unusable as found: print(found.detail, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    for _ in range(200):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                break
        except (ProcessLookupError, FileNotFoundError):
            break
        time.sleep(0.1)
    else:
        pytest.fail("it still runs")
