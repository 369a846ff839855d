"""Fetching from a real Orthanc, by DIMSE and by DICOMweb: what arrives, what is told, what survives."""

import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from orthanc import Orthanc, TlsRelay, needs_orthanc
from pacs_certificates import HospitalAuthority
from pacs_site import ACCESSION, PATIENT, ROOT, PacsSite, contents, dicomweb, dimse, make_study
from pydicom import dcmread

from client.doctor_pacs import check_pacs
from client.site_file import read_site
from shared_models.checkup import Wrong
from shared_models.processes import free_port

pytestmark = [needs_orthanc, pytest.mark.slow]
NUM_STUDIES = 12


class Archive:
    """A PACS with some studies, shared by the tests that only read it."""

    def __init__(self, folder: Path) -> None:
        self.move_port = free_port()
        self.studies = [make_study(folder / "files", number) for number in range(NUM_STUDIES)]
        self.files = [path for study in self.studies for path in study]
        self.orthanc = Orthanc(folder / "orthanc", move_port=self.move_port)

    def settings(self, way: str) -> str:
        if way == "dicomweb":
            return dicomweb(self.orthanc.url)
        if way == "move":
            listening = {"retrieve": "move", "listen_host": "127.0.0.1", "listen_port": self.move_port}
            return dimse(self.orthanc.dicom_port, **listening)
        return dimse(self.orthanc.dicom_port)

    def accessions(self) -> list[str]:
        return [str(dcmread(study[0], stop_before_pixels=True).AccessionNumber) for study in self.studies]

    def uids(self) -> list[str]:
        return [str(dcmread(study[0], stop_before_pixels=True).StudyInstanceUID) for study in self.studies]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    made = Archive(tmp_path_factory.mktemp("archive"))
    with made.orthanc:
        made.orthanc.upload(made.files)
        yield made


@pytest.fixture
def own_archive(tmp_path: Path) -> Iterator[Archive]:
    """A PACS that a test may kill or spoil."""
    made = Archive(tmp_path / "archive")
    with made.orthanc:
        made.orthanc.upload(made.files)
        yield made


WAYS = (pytest.param("get", marks=pytest.mark.thorough), "move", "dicomweb")


def says_nothing_of_patients(text: str) -> None:
    for secret in (PATIENT, "Oftering", "1.2.826.0.1"):
        assert secret not in text


@pytest.mark.parametrize("way", WAYS)
def test_what_arrives_is_what_was_stored_and_a_second_call_asks_for_nothing(
    archive: Archive, tmp_path: Path, way: str
) -> None:
    site = PacsSite(tmp_path, archive.settings(way))
    code, told, printed = site.fetch("--accessions", site.listed(archive.accessions()))
    assert (code, told["outcomes"]) == (0, {"complete": NUM_STUDIES}), printed
    assert site.held() == contents(archive.files)
    says_nothing_of_patients(printed)
    assert ACCESSION in site.record()
    assert stat.S_IMODE((site.state / "fetch.csv").stat().st_mode) == 0o600
    assert not [path for path in site.images.rglob("*") if PATIENT in str(path) or "1.2.826" in str(path)]

    before = {path: path.stat().st_mtime_ns for path in site.images.rglob("*.dcm")}
    code, told, _ = site.fetch("--accessions", site.listed(archive.accessions()))
    assert (code, told["known"], told["outcomes"], told["images"]) == (0, NUM_STUDIES, {}, 0)
    assert {path: path.stat().st_mtime_ns for path in site.images.rglob("*.dcm")} == before


@pytest.mark.thorough
@pytest.mark.parametrize("way", WAYS)
def test_with_every_logger_on_nothing_of_the_question_or_the_answer_is_said(
    archive: Archive, tmp_path: Path, way: str
) -> None:
    site = PacsSite(tmp_path, archive.settings(way))
    program = (
        "import logging, sys, warnings; logging.basicConfig(level=logging.DEBUG); warnings.simplefilter('always')\n"
        "import pynetdicom, httpx, pydicom; logging.getLogger('pynetdicom').setLevel(logging.DEBUG)\n"
        "from client.command import main; main()"
    )
    numbers = site.listed([*archive.accessions()[:3], "NOBODY-1"])
    words = ["fetch", "--config", str(site.config), "--accessions", str(numbers)]
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 3, told
    assert "3 × complete" in told
    assert "1 × unknown-accession" in told
    says_nothing_of_patients(told)
    assert "NOBODY" not in told


@pytest.mark.thorough
@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_lost_is_fetched_again_and_only_it(archive: Archive, tmp_path: Path, way: str) -> None:
    site = PacsSite(tmp_path, archive.settings(way))
    wanted = site.listed(archive.uids())
    assert site.fetch("--studies", wanted)[0] == 0
    sorted(site.images.rglob("*.dcm"))[3].unlink()
    code, told, printed = site.fetch("--studies", wanted)
    assert (code, told["known"], told["images"]) == (0, NUM_STUDIES - 1, 1), printed
    assert site.held() == contents(archive.files)


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["get", "dicomweb"])
def test_days_and_modalities_choose_series(own_archive: Archive, tmp_path: Path, way: str) -> None:
    late = make_study(tmp_path / "late", 99, StudyDate="20240402")
    own_archive.orthanc.upload(late)
    site = PacsSite(tmp_path, own_archive.settings(way))
    code, told, printed = site.fetch("--from", "2024-04-01", "--to", "2024-04-03")
    assert (code, told["outcomes"]) == (0, {"complete": 1}), printed
    assert site.held() == contents(late)
    code, told, printed = site.fetch("--from", "2024-03-09", "--to", "2024-03-11", "--modality", "XC")
    assert (code, told["outcomes"]) == (0, {"complete": NUM_STUDIES}), printed
    photographs = [path for path in own_archive.files if dcmread(path).Modality == "XC"]
    assert site.held() == contents([*late, *photographs])
    code, told, printed = site.fetch("--from", "2024-03-09", "--to", "2024-03-11")
    assert (code, told["known"], told["images"]) == (0, 0, len(own_archive.files) - len(photographs)), printed
    assert site.held() == contents([*late, *own_archive.files])
    code, told, _ = site.fetch("--from", "2024-03-09", "--to", "2024-03-11", "--modality", "MR")
    assert (code, told["outcomes"], told["images"]) == (0, {}, 0)


@pytest.mark.parametrize("way", WAYS)
def test_one_unknown_accession_number_is_listed_and_stops_nothing(
    archive: Archive, tmp_path: Path, way: str
) -> None:
    site = PacsSite(tmp_path, archive.settings(way))
    numbers = archive.accessions()
    wanted = [*numbers[:3], "NOBODY-1", *numbers[3:]]
    code, told, printed = site.fetch("--accessions", site.listed(wanted))
    assert (code, told["outcomes"]) == (3, {"complete": NUM_STUDIES, "unknown-accession": 1}), printed
    assert site.held() == contents(archive.files)
    assert "NOBODY-1,,,unknown-accession,0" in site.record()
    assert "NOBODY" not in printed


@pytest.mark.thorough
@pytest.mark.parametrize("way", WAYS)
def test_a_study_that_is_an_empty_shell_is_listed_and_stops_nothing(
    own_archive: Archive, tmp_path: Path, way: str
) -> None:
    """Orthanc drops a study with its last object; so the objects are still listed, and nothing is behind them."""
    for path in own_archive.studies[4]:
        own_archive.orthanc.lose_stored_files(path)
    site = PacsSite(tmp_path, own_archive.settings(way))
    code, told, printed = site.fetch("--accessions", site.listed(own_archive.accessions()))
    assert code == 3, printed
    outcomes = dict(told["outcomes"])
    assert outcomes.pop("complete") == NUM_STUDIES - 1, printed
    assert sum(outcomes.values()) == 1
    assert set(outcomes) <= {"incomplete", "pacs-error", "empty-study", "connection-lost"}, outcomes
    rest = [path for study in own_archive.studies for path in study if study is not own_archive.studies[4]]
    assert site.held() == contents(rest)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("changes", "told_by_doctor"),
    [
        ({"called_ae_title": "WRONG"}, "is not the called AE title"),
        ({"calling_ae_title": "STRANGER"}, None),
    ],
)
def test_a_wrong_ae_title_ends_the_call_with_its_own_code_and_lists_every_study(
    archive: Archive, tmp_path: Path, changes: dict[str, object], told_by_doctor: str | None
) -> None:
    site = PacsSite(tmp_path, dimse(archive.orthanc.dicom_port, **changes))
    begun = time.monotonic()
    code, told, printed = site.fetch("--accessions", site.listed(archive.accessions()))
    assert (code, told["stopped"], told["outcomes"]) == (4, "refused", {"refused": NUM_STUDIES}), printed
    assert time.monotonic() - begun < 30
    assert site.record().count(",refused,") == NUM_STUDIES
    assert site.held() == {}
    if told_by_doctor:
        with pytest.raises(Wrong, match=told_by_doctor):
            check_pacs(read_site(site.config).pacs)  # type: ignore[arg-type]
    site.pacs(archive.settings("get"))
    assert site.fetch("--accessions", site.listed(archive.accessions()))[0] == 0
    assert site.held() == contents(archive.files)


@pytest.mark.thorough
def test_a_wrong_password_is_told_and_the_right_one_works(tmp_path: Path) -> None:
    files = make_study(tmp_path / "files", 1)
    secret = tmp_path / "secret"
    secret.write_text("site:wrong\n")
    secret.chmod(0o600)
    with Orthanc(tmp_path / "orthanc", password="s3cret-word") as orthanc:
        orthanc.upload(files)
        site = PacsSite(tmp_path, dicomweb(orthanc.url, authentication="basic", credentials_file=str(secret)))
        wanted = site.listed([f"{ACCESSION}-0001-1"])
        code, told, printed = site.fetch("--accessions", wanted)
        assert (code, told["stopped"], told["detail"]) == (4, "refused", "(status 401)"), printed
        secret.write_text("site:s3cret-word\n")
        code, _, printed = site.fetch("--accessions", wanted)
        assert code == 0, printed
        assert site.held() == contents(files)
        assert "s3cret" not in printed
        secret.chmod(0o640)
        code, _, printed = site.fetch("--accessions", wanted)
        assert code == 2
        assert "chmod 600" in printed


@pytest.mark.thorough
@pytest.mark.parametrize("way", WAYS)
def test_a_pacs_that_is_killed_in_the_middle_is_told_and_the_next_call_completes(
    own_archive: Archive, tmp_path: Path, way: str
) -> None:
    site = PacsSite(tmp_path, own_archive.settings(way).replace("100000.0", "400.0"))
    wanted = site.listed(own_archive.accessions())
    process = site.start("--accessions", wanted)
    _wait(lambda: len(list(site.images.rglob("*.dcm"))) >= 5)
    own_archive.orthanc.kill()
    printed, told = process.communicate(timeout=120)
    assert process.returncode == 4, (printed, told)
    assert b'"stopped": "unreachable"' in printed
    says_nothing_of_patients((printed + told).decode())
    assert site.record().count("\n") == 2 * NUM_STUDIES + 1 - _without_find(site), "each study is listed"
    some = site.held()
    assert 0 < len(some) < len(own_archive.files)
    own_archive.orthanc.start()
    code, values, text = site.fetch("--accessions", wanted)
    assert code == 0, text
    assert values["images"] == len(own_archive.files) - len(some)
    assert site.held() == contents(own_archive.files)


def _without_find(site: PacsSite) -> int:
    """Accession numbers whose studies were never found have one line rather than two."""
    lines = [line.split(",") for line in site.record().splitlines()[1:]]
    found = {line[0] for line in lines if line[3] == "found"}
    return sum(1 for line in lines if line[0] not in found)


@pytest.mark.thorough
@pytest.mark.parametrize("way", WAYS)
def test_a_fetch_that_is_killed_at_any_moment_goes_on_where_it_was(
    archive: Archive, tmp_path: Path, way: str
) -> None:
    site = PacsSite(tmp_path, archive.settings(way))
    wanted = site.listed(archive.accessions())
    whole = contents(archive.files)
    generator = random.Random(way)
    kills = 0
    for _ in range(8):
        process = site.start("--accessions", wanted)
        _wait((site.state / "fetch.csv").exists)
        time.sleep(generator.uniform(0.0, 0.5))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate(timeout=60)
        for path in site.images.rglob("*.dcm"):
            uid, digest = contents([path]).popitem()
            assert whole[uid] == digest, "a file under its final name is whole"
    assert kills
    code, _, text = site.fetch("--accessions", wanted)
    assert code == 0, text
    assert site.held() == whole


@pytest.mark.thorough
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_fetch_ends_within_seconds_when_asked_to(
    archive: Archive, tmp_path: Path, way: str, ending: signal.Signals
) -> None:
    site = PacsSite(tmp_path, archive.settings(way).replace("100000.0", "200.0"))
    process = site.start("--accessions", site.listed(archive.accessions()))
    _wait(lambda: len(list(site.images.rglob("*.dcm"))) >= 3)
    begun = time.monotonic()
    process.send_signal(ending)
    printed, told = process.communicate(timeout=60)
    assert process.returncode == 130, (printed, told)
    assert time.monotonic() - begun < 60, "not the hours that it would go on for"
    says_nothing_of_patients((printed + told).decode())
    assert b"Traceback" not in told


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["get", "move", "dicomweb"])
def test_by_tls_only_the_named_authority_is_believed(tmp_path: Path, way: str) -> None:
    files = make_study(tmp_path / "files", 1)
    authority, other = HospitalAuthority("Hospital"), HospitalAuthority("Other")
    for name, one in (("ca", authority), ("other", other)):
        (tmp_path / f"{name}.pem").write_bytes(one.certificate)
    key, certificate = authority.issue()
    (tmp_path / "site.pem").write_bytes(certificate)
    (tmp_path / "site.key").write_bytes(key)
    move_port = free_port()
    with (
        Orthanc(tmp_path / "orthanc", move_port=move_port, authority=authority) as orthanc,
        TlsRelay(tmp_path / "relay", authority, orthanc.http_port) as relay,
    ):
        orthanc.upload(files)

        def settings(ca: str) -> str:
            trust: dict[str, object] = {"ca_certificate": str(tmp_path / f"{ca}.pem")}
            if way == "dicomweb":
                return dicomweb(f"https://127.0.0.1:{relay.port}/dicom-web", **trust)
            trust |= {"tls": True, "client_certificate": str(tmp_path / "site.pem")}
            trust |= {"client_key": str(tmp_path / "site.key")}
            if way == "move":
                trust |= {"retrieve": "move", "listen_host": "127.0.0.1", "listen_port": move_port}
            return dimse(orthanc.dicom_port, **trust)

        site = PacsSite(tmp_path, settings("other"))
        wanted = site.listed([f"{ACCESSION}-0001-1"])
        code, told, printed = site.fetch("--accessions", wanted)
        assert (code, told["stopped"]) == (4, "unreachable"), printed
        site.pacs(settings("ca"))
        code, _, printed = site.fetch("--accessions", wanted)
        assert code == 0, printed
        assert site.held() == contents(files)


@pytest.mark.parametrize("way", WAYS)
def test_the_doctor_says_hello_to_the_pacs(archive: Archive, tmp_path: Path, way: str) -> None:
    site = PacsSite(tmp_path, archive.settings(way))
    pacs = read_site(site.config).pacs
    assert pacs is not None
    outcome = check_pacs(pacs)
    assert outcome.state == "ok"
    assert "answers" in outcome.message
    closed = free_port()
    site.pacs(dicomweb(f"http://127.0.0.1:{closed}/x") if way == "dicomweb" else dimse(closed))
    pacs = read_site(site.config).pacs
    assert pacs is not None
    with pytest.raises(Wrong, match="firewall"):
        check_pacs(pacs)


def test_a_disk_that_fills_up_is_told_and_what_came_stays(archive: Archive, tmp_path: Path) -> None:
    site = PacsSite(tmp_path, archive.settings("dicomweb"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1100k,mode=700", "tmpfs", str(site.images)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        code, told, printed = site.fetch("--accessions", site.listed(archive.accessions()))
        assert (code, told["stopped"]) == (1, "disk-full"), printed
        assert sum(told["outcomes"].values()) == NUM_STUDIES
        assert set(site.held().items()) <= set(contents(archive.files).items())
    finally:
        subprocess.run(["umount", str(site.images)], check=True)


def _wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
