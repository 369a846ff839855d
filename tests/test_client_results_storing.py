"""Results on their way into a PACS: a real Orthanc takes them into the right study; what goes wrong is told."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from orthanc import Orthanc, TlsRelay, needs_orthanc
from pacs_certificates import HospitalAuthority
from pydicom import dcmread
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage, SegmentationStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification
from readings import SOURCES, classifier, image_of, masked, picture, scored, segmenter

from client.pacs import pacs_connections
from client.pacs_file import Pacs
from client.prediction.dicom_results.numbering import Kind
from client.prediction.dicom_results.storing import Stored, StoredFiles, store
from client.prediction.dicom_results.storing_outcomes import Storing
from client.prediction.dicom_results.writer import DicomResults
from shared_models.configuration import ConfigurationError
from shared_models.processes import free_port

pytest.importorskip("highdicom", reason="needs the extra: pip install 'collegium[results]'")
CLASSES = {str(ComprehensiveSRStorage), str(SecondaryCaptureImageStorage), str(SegmentationStorage)}
SECRETS = ("Phantom", "hospital-1-", "2.25.")


def pacs_of(**parts: object) -> Pacs:
    """``[pacs]``, quick."""
    return Pacs.model_validate({"timeout_seconds": 10.0, "attempts": 2, "backoff_seconds": 0.05, **parts})


def dimse(port: int, **changes: object) -> Pacs:
    values = {"host": "127.0.0.1", "port": port, "called_ae_title": "ARCHIVE", **changes}
    return pacs_of(dimse=values)


def dicomweb(url: str, **changes: object) -> Pacs:
    return pacs_of(dicomweb={"url": url, **changes})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path]]:
    """The files of a series and a radiograph, and results of both: three kinds of each."""
    folder, sources, results = tmp_path_factory.mktemp("results"), list[Path](), list[Path]()
    for name in ("series", "digital-x-ray"):
        kind = SOURCES[name]
        image, files = image_of(kind), kind.make(folder / name / "in")
        sources += files
        scores = DicomResults(folder / name / "scores", [classifier(image)], {Kind.REPORT, Kind.PICTURE})
        results += scores.write(scored(files, image), picture())
        masks = DicomResults(folder / name / "masks", [segmenter(image)], {Kind.SEGMENTATION})
        results += masks.write(masked(files, image))
    return sources, results


Written = tuple[list[Path], list[Path]]


def codes(found: StoredFiles) -> list[str]:
    return [one.outcome.code for one in found.files]


def says_nothing_of_patients(found: StoredFiles) -> None:
    for sentence in found.troubles:
        assert not any(secret in sentence for secret in SECRETS), sentence


def held(pacs: Pacs, study: str) -> dict[str, str]:
    """SOP Instance UID → modality of its series, of all that the PACS lists of a study (C-FIND or QIDO-RS)."""
    with pacs_connections(pacs) as connect:
        connection = connect()
        try:
            return {
                one.instance: series.modality
                for series in connection.series(study)
                for one in connection.instances(study, series.series)
            }
        finally:
            connection.close()


# A real Orthanc


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("orthanc") / "orthanc", move_port=free_port()) as made:
        yield made


def access(orthanc: Orthanc, way: str) -> Pacs:
    if way == "dicomweb":
        return dicomweb(orthanc.url)
    if way == "move":
        listening = {"retrieve": "move", "listen_host": "127.0.0.1", "listen_port": free_port()}
        return dimse(orthanc.dicom_port, **listening)
    return dimse(orthanc.dicom_port)


@pytest.mark.thorough
@needs_orthanc
@pytest.mark.parametrize("way", ["get", "move", "dicomweb"])
def test_orthanc_takes_them_and_they_are_in_the_study_of_their_images(
    written: Written, tmp_path: Path, way: str
) -> None:
    sources, results = written
    with Orthanc(tmp_path / "orthanc", move_port=free_port()) as orthanc:
        orthanc.upload(sources)
        pacs, told = access(orthanc, way), list[Stored]()
        found = store(results, pacs, told.append)
        assert codes(found) == ["stored"] * len(results)
        assert (found.exit_code, found.num_stored, found.troubles) == (0, len(results), {})
        assert [one.path for one in told] == results
        for source in (sources[0], sources[-1]):
            study = str(dcmread(source, stop_before_pixels=True).StudyInstanceUID)
            of_study = [dcmread(path, stop_before_pixels=True) for path in [*sources, *results]]
            wanted = {
                str(one.SOPInstanceUID): str(one.Modality)
                for one in of_study
                if one.StudyInstanceUID == study
            }
            assert held(pacs, study) == wanted
            assert {"SR", "SEG", "OT"} <= set(wanted.values())


@pytest.mark.slow
@needs_orthanc
@pytest.mark.parametrize("way", ["get", "dicomweb"])
def test_storing_again_doubles_nothing(orthanc: Orthanc, written: Written, way: str) -> None:
    pacs, study = access(orthanc, way), str(dcmread(written[1][0], stop_before_pixels=True).StudyInstanceUID)
    assert store(written[1], pacs).exit_code == 0
    first = held(pacs, study)
    assert store(written[1], pacs).exit_code == 0
    assert held(pacs, study) == first


@pytest.mark.slow
@needs_orthanc
def test_what_orthanc_holds_is_what_was_written(orthanc: Orthanc, written: Written) -> None:
    import httpx

    store(written[1], access(orthanc, "get"))
    for path in written[1]:
        own = dcmread(path)
        (found,) = httpx.post(
            f"http://127.0.0.1:{orthanc.http_port}/tools/lookup", content=str(own.SOPInstanceUID)
        ).json()
        answer = httpx.get(f"http://127.0.0.1:{orthanc.http_port}/instances/{found['ID']}/file")
        (path.parent / "back").write_bytes(answer.content)
        back = dcmread(path.parent / "back")
        (path.parent / "back").unlink()
        assert back == own


@pytest.mark.slow
@needs_orthanc
def test_a_wrong_ae_title_is_told_once_and_ends_the_call(orthanc: Orthanc, written: Written) -> None:
    found = store(written[1], dimse(orthanc.dicom_port, called_ae_title="ELSEWHERE"))
    assert set(codes(found)) == {"refused"}
    assert [one.tried for one in found.files] == [True] + [False] * (len(written[1]) - 1)
    (sentence,) = found.troubles
    assert "is not the called AE title" in sentence
    assert "register this site's AE title" in sentence
    assert found.exit_code == 4
    assert all(path.is_file() for path in written[1])
    says_nothing_of_patients(found)


@pytest.mark.slow
@needs_orthanc
def test_a_wrong_password_is_told(tmp_path: Path, written: Written) -> None:
    password = tmp_path / "password"
    password.write_text("site:wrong")
    password.chmod(0o600)
    with Orthanc(tmp_path / "orthanc", password="right") as orthanc:
        parts = {"authentication": "basic", "credentials_file": password}
        found = store(written[1], dicomweb(orthanc.url, **parts))
        assert set(codes(found)) == {"refused"}
        assert found.files[0].detail == "(status 401)"
        password.write_text("site:right")
        assert store(written[1], dicomweb(orthanc.url, **parts)).exit_code == 0


@pytest.mark.slow
@needs_orthanc
def test_an_address_without_a_store_service_is_told(orthanc: Orthanc, written: Written) -> None:
    found = store(written[1], dicomweb(orthanc.url.replace("dicom-web", "elsewhere")))
    assert set(codes(found)) == {"no-service"}
    assert found.exit_code == 4


@pytest.mark.slow
@needs_orthanc
def test_both_ways_are_encrypted_where_the_site_says_so(tmp_path: Path, written: Written) -> None:
    authority = HospitalAuthority("hospital")
    key, certificate = authority.issue()
    for name, content in (("ca", authority.certificate), ("key", key), ("certificate", certificate)):
        (tmp_path / f"{name}.pem").write_bytes(content)
    ca = tmp_path / "ca.pem"
    with Orthanc(tmp_path / "orthanc", authority=authority) as orthanc:
        own = {"client_certificate": tmp_path / "certificate.pem", "client_key": tmp_path / "key.pem"}
        assert store(written[1], dimse(orthanc.dicom_port, tls=True, ca_certificate=ca, **own)).exit_code == 0
        assert store(written[1], dimse(orthanc.dicom_port)).exit_code == 4, "in clear it is not let in"
        with TlsRelay(tmp_path / "relay", authority, orthanc.http_port) as relay:
            url = f"https://127.0.0.1:{relay.port}/dicom-web"
            assert store(written[1], dicomweb(url, ca_certificate=ca)).exit_code == 0
            stranger = store(written[1], dicomweb(url))
    assert stranger.files[0].detail == "(the certificate is refused)"


# A PACS that behaves badly


@pytest.mark.parametrize("way", ["get", "dicomweb"])
def test_a_pacs_that_is_not_there_is_told_and_the_files_stay(written: Written, way: str) -> None:
    port = free_port()
    before = {path: path.read_bytes() for path in written[1]}
    found = store(written[1], dimse(port) if way == "get" else dicomweb(f"http://127.0.0.1:{port}"))
    assert set(codes(found)) == {"unreachable"}
    (sentence,) = found.troubles
    assert sentence.startswith("Nothing answers at the address of the PACS.")
    assert found.exit_code == 4
    assert {path: path.read_bytes() for path in written[1]} == before
    says_nothing_of_patients(found)


@contextmanager
def archive(
    classes: Sequence[str], status: Callable[[int], int] = lambda number: 0
) -> Iterator[tuple[int, list[str]]]:
    """A storage SCP that takes some classes and answers its n-th object (from 0) with a status."""
    taken: list[str] = []

    def stored(event: evt.Event) -> int:
        taken.append(str(event.request.AffectedSOPInstanceUID))
        return status(len(taken) - 1)

    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(Verification)
    for uid in classes:
        entity.add_supported_context(uid)
    port = free_port()
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, stored)])
    try:
        yield port, taken
    finally:
        assert server is not None
        server.shutdown()


def test_a_kind_that_the_pacs_does_not_take_is_told_and_the_others_are_stored(written: Written) -> None:
    with archive([SecondaryCaptureImageStorage]) as (port, taken):
        found = store(written[1], dimse(port))
    assert codes(found) == ["kind-refused", "stored", "kind-refused"] * 2
    assert len(taken) == 2
    assert {one.detail for one in found.files if not one.outcome.is_stored} == {
        "(Comprehensive SR Storage)",
        "(Segmentation Storage)",
    }
    assert found.exit_code == 3
    says_nothing_of_patients(found)


def test_a_pacs_that_takes_nothing_of_ours_says_so_of_each_kind(written: Written) -> None:
    with archive([]) as (port, _):
        found = store(written[1], dimse(port))
    assert set(codes(found)) == {"kind-refused"}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (0x0122, "kind-refused"),
        (0xA900, "object-refused"),
        (0xC123, "object-refused"),
        (0xB000, "stored-changed"),
        (0xB006, "stored-changed"),
    ],
)
def test_each_status_has_its_outcome(written: Written, status: int, code: str) -> None:
    with archive(sorted(CLASSES), lambda number: status if number == 0 else 0) as (port, _):
        found = store(written[1], dimse(port))
    assert codes(found) == [code, *["stored"] * (len(written[1]) - 1)]
    assert f"{status:04X}" in found.files[0].detail
    assert found.exit_code == (0 if code == "stored-changed" else 3)
    says_nothing_of_patients(found)


@pytest.mark.slow
def test_what_is_out_of_resources_is_tried_again(written: Written) -> None:
    with archive(sorted(CLASSES), lambda number: 0xA700 if number == 0 else 0) as (port, taken):
        found = store(written[1], dimse(port))
    assert found.exit_code == 0
    assert taken[0] == taken[1], "the same object a second time"
    with archive(sorted(CLASSES), lambda number: 0xA700) as (port, _):
        assert set(codes(store(written[1][:2], dimse(port)))) == {"no-room"}


def test_who_may_not_store_is_told_once(written: Written) -> None:
    with archive(sorted(CLASSES), lambda number: 0x0124) as (port, taken):
        found = store(written[1], dimse(port))
    assert (set(codes(found)), len(taken)) == ({"refused"}, 1)


@pytest.mark.slow
def test_a_pacs_that_falls_silent_is_left_after_its_time(written: Written) -> None:
    let_go = threading.Event()

    def silent(number: int) -> int:
        let_go.wait(20.0)
        return 0

    with archive(sorted(CLASSES), silent) as (port, _):
        begun = time.monotonic()
        pacs = dimse(port).model_copy(update={"timeout_seconds": 0.5, "attempts": 1})
        found = store(written[1][:1], pacs)
        took = time.monotonic() - begun
        let_go.set()
    assert codes(found) == ["time-out"]
    assert took < 10.0


class Answers(ThreadingHTTPServer):
    """A STOW-RS service that says the same to everything."""

    def __init__(self, status: int, body: object = None) -> None:
        self.status, self.body = status, body
        self.requests: list[tuple[str, bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/rs"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Answers)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.requests.append((self.path, body))
        content = b"" if server.body is None else json.dumps(server.body).encode()
        self.send_response(server.status)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(status: int, body: object = None) -> Iterator[Answers]:
    with Answers(status, body) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def failed(reason: int) -> dict[str, object]:
    return {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}}


WARNED = {"00081199": {"vr": "SQ", "Value": [{"00081196": {"vr": "US", "Value": [0xB000]}}]}}


@pytest.mark.parametrize(
    ("status", "body", "code", "detail"),
    [
        (200, None, "stored", ""),
        (200, {"00081199": {"vr": "SQ", "Value": [{}]}}, "stored", ""),
        (202, WARNED, "stored-changed", "(code B000)"),
        (202, failed(0x0110), "object-refused", "(code 0110)"),
        (409, failed(0x0122), "kind-refused", "(Comprehensive SR Storage, code 0122)"),
        (409, [failed(0xA700)], "no-room", "(code A700)"),
        (409, failed(0x0124), "refused", "(code 0124)"),
        (409, None, "object-refused", "(status 409)"),
        (409, "nonsense", "object-refused", "(status 409)"),
        (400, None, "pacs-error", "(status 400)"),
        (401, None, "refused", "(status 401)"),
        (403, failed(0x0110), "refused", "(status 403)"),
        (404, None, "no-service", "(status 404)"),
        (413, None, "no-room", "(status 413)"),
        (500, None, "pacs-error", "(status 500)"),
        (504, None, "time-out", "(status 504)"),
        (301, None, "pacs-error", "(status 301)"),
    ],
)
def test_each_answer_of_stow_has_its_outcome(
    written: Written, status: int, body: object, code: str, detail: str
) -> None:
    with answering(status, body) as server:
        (found,) = store(written[1][:1], dicomweb(server.url)).files
    assert (found.outcome.code, found.detail) == (code, detail)
    again = code in ("time-out", "no-room", "connection-lost")
    assert len(server.requests) == (2 if again else 1)


def test_stow_sends_the_file_as_it_is(written: Written) -> None:
    with answering(200) as server:
        store(written[1][:1], dicomweb(server.url))
    ((path, body),) = server.requests
    assert path == "/rs/studies"
    assert body.partition(b"\r\n\r\n")[2].startswith(written[1][0].read_bytes() + b"\r\n--")


@pytest.mark.parametrize("way", ["get", "dicomweb"])
def test_a_file_that_is_none_costs_itself_only(written: Written, tmp_path: Path, way: str) -> None:
    text = tmp_path / "notes.dcm"
    text.write_text("notes")
    files = [tmp_path / "gone.dcm", text, written[1][0]]
    with archive(sorted(CLASSES)) as (port, _), answering(200) as server:
        found = store(files, dimse(port) if way == "get" else dicomweb(server.url))
    assert codes(found) == ["not-readable", "not-readable", "stored"]


def test_certificates_that_are_none_are_told_before_anything_is_sent(
    written: Written, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("none")
    with pytest.raises(ConfigurationError, match="certificates or key cannot be used"):
        store(written[1], dimse(1, tls=True, ca_certificate=ca))


@pytest.mark.slow
def test_every_outcome_has_a_code_of_its_own() -> None:
    assert len({one.code for one in Storing}) == len(Storing)
