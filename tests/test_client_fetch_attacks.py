"""A hostile PACS, a stranger who reaches the port of C-MOVE, and another user of this machine."""

import gc
import gzip
import json
import os
import socket
import ssl
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from dicom_files import SECRET, dataset, gradient
from pacs_certificates import HospitalAuthority
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    ComputedRadiographyImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)
from test_client_fetch import Site, answering, entry, uid_of

from client.fetch_reasons import NotFetched, Outcome
from client.fetch_record import FetchRecord
from client.fetch_store import ImageStore
from client.pacs_dimse import DimseConnection, StorageReceiver, dimse_access
from client.pacs_file import Dimse, Pacs
from client.pacs_query import FoundInstance, FoundStudy, StudyQuery, Wanted

FIND, GET = StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet
CR = str(ComputedRadiographyImageStorage)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def refused(step: Callable[[], object]) -> NotFetched:
    with pytest.raises(NotFetched) as told:
        step()
    return told.value


# DICOMweb


@pytest.mark.parametrize("times", [1, 2])
def test_an_answer_packed_unasked_is_refused_before_anything_is_unpacked(times: int) -> None:
    """Packed twice, a megabyte becomes a terabyte, of which httpx would hold a piece of 64 KiB unpacked."""
    packed = b"[" + b" " * (64 << 20) + b"]"
    for _ in range(times):
        packed = gzip.compress(packed, 1)
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers)
        headers = {"Content-Encoding": ", ".join(["gzip"] * times)}
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(packed))

    connection = answering(answer)
    trouble = refused(lambda: connection.studies(StudyQuery(accession="A")))
    assert (trouble.outcome, trouble.detail) == (Outcome.PACS_ERROR, "(an answer is compressed, unasked)")


def test_a_service_that_lists_new_studies_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.pacs_web.MOST_ANSWERS", 2000)
    num_pages = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal num_pages
        num_pages += 1
        assert num_pages < 20, "it goes on for ever"
        offset = int(request.url.params["offset"])
        return httpx.Response(200, content=json.dumps([entry(offset + one) for one in range(200)]))

    trouble = refused(lambda: answering(answer).studies(StudyQuery(accession="A")))
    assert trouble.detail == "(too many answers)"


def test_a_value_of_a_megabyte_is_no_identifier() -> None:
    listed = [{"0020000D": {"Value": ["1.2"]}, "00100020": {"Value": ["X" * 2**20]}}]
    answer = httpx.Response(200, content=json.dumps(listed))
    assert refused(lambda: answering(lambda request: answer).studies(StudyQuery(study="1.2"))).outcome is (
        Outcome.PACS_ERROR
    )


def test_half_a_character_in_an_answer_can_be_written_down() -> None:
    """JSON may hold a lone surrogate, which no file can."""
    content = b'[{"0020000D": {"Value": ["1.2"]}, "00100020": {"Value": ["P\\ud800"]}}]'
    found = answering(lambda request: httpx.Response(200, content=content)).studies(StudyQuery(study="1.2"))
    assert found[0].patient == "P?"


# The record


@pytest.mark.parametrize("accession", ["\x1b]0;owned\x07\x1b[2J", "A\rB\nC", "=HYPERLINK(1)", "\u202etxt"])
def test_an_accession_number_of_the_pacs_steers_no_terminal_and_no_spreadsheet(
    site: Site, accession: str
) -> None:
    connect = site.pacs.connect

    def connecting() -> object:
        connection = connect()
        connection.studies = lambda query: [FoundStudy(study="1", accession=accession, day="20240101")]  # type: ignore[method-assign]
        return connection

    site.pacs.connect = connecting  # type: ignore[method-assign,assignment]
    assert site.counts(wanted=Wanted(studies=("1",))) == {"complete": 1}
    text = (site.state / "fetch.csv").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 2
    assert text.replace("\n", "").isprintable()
    assert not text.splitlines()[1].startswith("=")
    line = FetchRecord(site.state).of_study("1")
    assert line is not None
    assert line.outcome == "complete"


# The folder


@pytest.mark.parametrize("whose", ["everybody", "another"])
def test_a_folder_that_another_user_put_there_gets_no_image(site: Site, tmp_path: Path, whose: str) -> None:
    """A link ``pacs`` to a folder into which everybody may write, or which belongs to somebody else."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    if whose == "everybody":
        theirs.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(theirs, 12345, -1)
    else:
        pytest.skip("only root gives folders away")
    victim = theirs / "folder" / ".notes.part"
    victim.parent.mkdir()
    victim.write_text("not ours")
    (site.images / "pacs").symlink_to(theirs)
    tally = site.fetch()
    assert tally.stopped is not None
    assert tally.stopped.outcome is Outcome.NOT_WRITABLE
    assert [path for path in theirs.rglob("*") if path.is_file()] == [victim], (
        "nothing written, nothing deleted"
    )


def test_a_link_of_this_user_to_another_disk_is_followed(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "disk"
    other.mkdir(mode=0o750)
    (site.images / "pacs").symlink_to(other)
    assert site.counts() == {"complete": 3}
    assert len(list(other.rglob("*.dcm"))) == 6


def test_one_huge_image_does_not_eat_the_room_that_must_stay_free(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = os.statvfs(site.images)
    free = found.f_bavail * found.f_frsize
    monkeypatch.setattr(os, "statvfs", lambda path: found)  # other programs fill the disk too
    store = ImageStore(site.images, SECRET, min_free_bytes=free - 2000, max_object_bytes=1 << 20)
    store.prepare()
    with store.study("1", {"1"}).incoming() as incoming:
        incoming.write(bytes(1000))
        assert refused(lambda: incoming.write(bytes(3000))).outcome is Outcome.DISK_FULL


def test_the_same_image_sent_without_end_is_stopped(site: Site) -> None:
    path = site.pacs.studies["1"][0]
    store = ImageStore(site.images, SECRET, min_free_bytes=1, max_object_bytes=1 << 20)
    store.prepare()
    content = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n"
    kinds = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}
    num_sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal num_sent
        for num_sent in range(1, 51):  # noqa: B007
            yield content

    connection = answering(lambda request: httpx.Response(200, headers=kinds, content=parts()))
    wanted = [FoundInstance(instance=uid_of(path))]
    folder = store.study("1", {uid_of(path)})
    trouble = refused(lambda: connection.retrieve("1", "1.1", wanted, folder.incoming, whole=True))
    assert trouble.outcome is Outcome.PACS_ERROR
    assert num_sent < 10
    assert site.num_files == 1


# DIMSE: a PACS that lies


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


@contextmanager
def hostile_pacs(*handlers: object) -> Iterator[int]:
    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(FIND)
    entity.add_supported_context(GET)
    entity.add_supported_context(CR, scp_role=True, scu_role=True)
    port = free_port()
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=list(handlers))  # type: ignore[arg-type]
    try:
        yield port
    finally:
        server.shutdown()


@contextmanager
def connected(port: int, **changes: object) -> Iterator[DimseConnection]:
    service = Dimse(host="127.0.0.1", port=port, called_ae_title="ARCHIVE")
    pacs = Pacs(dimse=service, **{"timeout_seconds": 3.0, "max_object_mib": 1, **changes})  # type: ignore[arg-type]
    with dimse_access(pacs, service) as access:
        connection = DimseConnection(access)
        try:
            yield connection
        finally:
            connection.close()


@contextmanager
def silent_listener(reply: Callable[[socket.socket], None]) -> Iterator[int]:
    """Something that listens and does what it likes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                peer, _ = server.accept()
                with peer:
                    reply(peer)
            except OSError:
                pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(server.getsockname()[1])
    thread.join(10)


def test_a_message_unit_that_claims_four_gigabytes_is_not_waited_for() -> None:
    """The library would hold all that comes until the claimed length is there."""
    num_taken = 0

    def flood(peer: socket.socket) -> None:
        nonlocal num_taken
        peer.recv(65536)
        peer.sendall(struct.pack(">BBL", 2, 0, 0xFFFFFFF0))
        for _ in range(64):
            peer.sendall(bytes(1 << 20))
            num_taken += 1

    with silent_listener(flood) as port, connected(port) as connection:
        refused(lambda: connection.studies(StudyQuery(accession="A")))
    assert num_taken < 32


def test_an_object_without_end_by_dimse_is_cut_off_at_the_limit() -> None:
    """Fragments come, and none says that it is the last one."""

    def send(event: evt.Event) -> Iterator[object]:
        yield 1
        made = dataset(gradient(), StudyInstanceUID="1.2")
        made.PixelData = bytes(16 << 20)
        yield 0xFF00, made

    with hostile_pacs((evt.EVT_C_GET, send)) as port, connected(port) as connection:
        trouble = refused(
            lambda: connection.retrieve(
                "1.2", "1.3", [FoundInstance(instance="1.2.4", sop_class=CR)], never, whole=True
            )
        )
    assert trouble.outcome is Outcome.TOO_LARGE


@pytest.mark.slow
@pytest.mark.parametrize("how", ["refused", "reset"])
def test_a_connection_that_fails_leaves_no_socket_open(how: str) -> None:
    """The library would leave one open whose peer was faster, until it is collected."""

    def reset(peer: socket.socket) -> None:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.recv(65536)

    with silent_listener(reset) as port, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with connected(port if how == "reset" else free_port()) as connection:
            refused(connection.ping)
        del connection
        gc.collect()
        if how == "refused":
            socket.create_connection(("127.0.0.1", port)).close()
    assert [str(warning.message) for warning in caught if warning.category is ResourceWarning] == []


def never() -> object:
    raise AssertionError("nothing is to be written")


@pytest.mark.filterwarnings("ignore")  # pydicom's of the character set
def test_by_dimse_a_patient_id_in_a_codec_of_python_is_no_answer() -> None:
    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        answer = Dataset()
        answer.QueryRetrieveLevel = "STUDY"
        answer.StudyInstanceUID = "1.2"
        answer.SpecificCharacterSet = "utf_7"
        answer.PatientID = "P\ud800"
        yield 0xFF00, answer
        yield 0x0000, None

    with hostile_pacs((evt.EVT_C_FIND, find)) as port, connected(port) as connection:
        trouble = refused(lambda: connection.studies(StudyQuery(study="1.2")))
    assert (trouble.outcome, trouble.detail) == (Outcome.PACS_ERROR, "(an answer cannot be read)")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the library's server goes on sending after its connection ended
def test_the_same_image_sent_without_end_by_dimse_is_stopped(site: Site) -> None:
    made = dataset(gradient(), patient="1", image="1", StudyInstanceUID="1")
    num_sent = 0

    def send(event: evt.Event) -> Iterator[object]:
        nonlocal num_sent
        yield 100
        for num_sent in range(1, 101):  # noqa: B007
            yield 0xFF00, made

    store = ImageStore(site.images, SECRET, min_free_bytes=1, max_object_bytes=1 << 20)
    store.prepare()
    instance = str(made.SOPInstanceUID)
    wanted = [FoundInstance(instance=instance, sop_class=str(made.SOPClassUID))]
    folder = store.study("1", {instance})
    with hostile_pacs((evt.EVT_C_GET, send)) as port, connected(port) as connection:
        trouble = refused(lambda: connection.retrieve("1", "1.1", wanted, folder.incoming, whole=True))
    assert (trouble.outcome, trouble.detail) == (Outcome.PACS_ERROR, "(more objects than were asked for)")
    assert num_sent < 20
    assert site.num_files == 1
    gc.collect()


# C-MOVE: a stranger at our port


def receiver(port: int, **changes: object) -> StorageReceiver:
    service = Dimse(
        host="127.0.0.1",
        port=104,
        called_ae_title="ARCHIVE",
        retrieve="move",
        listen_host="127.0.0.1",
        listen_port=port,
        **changes,  # type: ignore[arg-type]
    )
    return StorageReceiver(service, timeout_seconds=5.0, max_object_bytes=1 << 20)


def store_as_stranger(port: int, made: Dataset) -> int:
    entity = AE(ae_title="STRANGER")
    entity.add_requested_context(made.SOPClassUID)
    association = entity.associate("127.0.0.1", port, ae_title="COLLEGIUM")
    assert association.is_established
    try:
        return int(association.send_c_store(made).Status)
    finally:
        association.release()


@pytest.mark.slow
def test_what_a_stranger_stores_unasked_is_refused_unparsed_and_fails_no_study(site: Site) -> None:
    made = dataset(gradient(), patient="stranger", StudyInstanceUID="9")
    port = free_port()
    listening = receiver(port)
    try:
        with listening.expecting(["1.2.3"], never) as trouble:  # type: ignore[arg-type]
            assert store_as_stranger(port, made) == 0xC000
            assert trouble == []
    finally:
        listening.close()


@pytest.mark.slow
def test_a_stranger_who_never_shakes_hands_keeps_nobody_out(tmp_path: Path) -> None:
    authority = HospitalAuthority("Hospital")
    key, certificate = authority.issue()
    ca, own, private = tmp_path / "ca.pem", tmp_path / "site.pem", tmp_path / "site.key"
    for path, content in ((ca, authority.certificate), (own, certificate), (private, key)):
        path.write_bytes(content)
    port = free_port()
    listening = receiver(
        port,
        tls=True,
        ca_certificate=ca,
        client_certificate=own,
        client_key=private,
    )
    try:
        with socket.create_connection(("127.0.0.1", port)):
            time.sleep(0.2)
            context = ssl.create_default_context(cafile=str(ca))
            context.load_cert_chain(own, private)
            with (
                socket.create_connection(("127.0.0.1", port), timeout=3) as peer,
                context.wrap_socket(peer, server_hostname="127.0.0.1"),
            ):
                pass
            begun = time.monotonic()
    finally:
        listening.close()
    assert time.monotonic() - begun < 3
