"""A real Orthanc (the Debian packages ``orthanc`` and ``orthanc-dicomweb``) on loopback, as a child process."""

import json
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from pacs_certificates import HospitalAuthority
from pydicom import dcmread

from shared_models.processes import free_port

PROGRAM = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
needs_orthanc = pytest.mark.skipif(
    PROGRAM is None or not PLUGIN.exists(),
    reason="needs a real PACS: apt-get install orthanc orthanc-dicomweb (docs/pacs.md)",
)
START_SECONDS = 60.0


class Orthanc:
    """One PACS with a folder of its own. Use as a context manager; it may be killed and started again."""

    def __init__(
        self,
        folder: Path,
        *,
        move_port: int = 1,
        password: str = "",
        authority: HospitalAuthority | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        self.folder, self.password = folder, password
        self.dicom_port, self.http_port = free_port(), free_port()
        self.storage = folder / "storage"
        known = {"AET": "COLLEGIUM", "Host": "127.0.0.1", "Port": move_port}
        settings = {
            "Name": "test",
            "StorageDirectory": str(self.storage),
            "IndexDirectory": str(self.storage),
            "DicomAet": "ARCHIVE",
            "DicomPort": self.dicom_port,
            "HttpPort": self.http_port,
            "DicomCheckCalledAet": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": bool(password),
            "RegisteredUsers": {"site": password} if password else {},
            "Plugins": [str(PLUGIN)],
            "DicomModalities": {"site": {**known, "UseDicomTls": bool(authority)}},
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "MaximumStorageCacheSize": 0,
            "StableAge": 1,
            "ConcurrentJobs": 4,
        }
        if authority is not None:
            settings |= _encrypted(folder, authority)
        self.config = folder / "orthanc.json"
        self.config.write_text(json.dumps(settings), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Orthanc":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """The root of its DICOMweb service."""
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert PROGRAM is not None
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, str(self.config)], cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, "Orthanc does not start"
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            self._ask("GET", "/system")
        except httpx.TransportError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL, to this process only."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def upload(self, files: list[Path]) -> None:
        """Store files as they are."""
        with self._client() as client:
            for path in files:
                client.post("/instances", content=path.read_bytes()).raise_for_status()

    def lose_stored_files(self, path: Path) -> None:
        """Take what is stored of the instance of *path* from the PACS's disk: it still lists it."""
        identifier = dcmread(path, stop_before_pixels=True).SOPInstanceUID
        (found,) = self._ask("POST", "/tools/lookup", content=str(identifier)).json()
        wanted = self._ask("GET", f"/instances/{found['ID']}/file").content
        for stored in self.storage.rglob("*"):
            if stored.is_file() and stored.stat().st_size == len(wanted) and stored.read_bytes() == wanted:
                stored.unlink()

    def _client(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.http_port}",
            auth=("site", self.password) if self.password else None,
            trust_env=False,
            timeout=60,
        )

    def _ask(self, method: str, path: str, content: str | None = None) -> httpx.Response:
        with self._client() as client:
            return client.request(method, path, content=content).raise_for_status()


def _encrypted(folder: Path, authority: HospitalAuthority) -> dict[str, object]:
    """TLS for DICOM with a certificate of this authority; clients need one of it, too."""
    key, certificate = authority.issue()
    (folder / "ca.pem").write_bytes(authority.certificate)
    (folder / "key.pem").write_bytes(key)
    (folder / "certificate.pem").write_bytes(certificate)
    return {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(folder / "certificate.pem"),
        "DicomTlsPrivateKey": str(folder / "key.pem"),
        "DicomTlsTrustedCertificates": str(folder / "ca.pem"),
    }


class TlsRelay:
    """TLS in front of the PACS's web service, as hospitals have it. (Debian's Orthanc 1.10.1 crashes on its own.)"""

    def __init__(self, folder: Path, authority: HospitalAuthority, target_port: int) -> None:
        folder.mkdir()
        (folder / "both.pem").write_bytes(b"".join(authority.issue()))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "both.pem")

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                try:
                    near = context.wrap_socket(self.request, server_side=True)
                except (ssl.SSLError, OSError):
                    return  # the client does not believe the certificate
                with near, socket.create_connection(("127.0.0.1", target_port)) as far:
                    back = threading.Thread(target=_pour, args=(far, near))
                    back.start()
                    _pour(near, far)
                    back.join()

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> "TlsRelay":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _pour(source: socket.socket, target: socket.socket) -> None:
    """All bytes from one end to the other, until either closes."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
