"""A PACS over DICOMweb: QIDO-RS for questions, WADO-RS for images (PS3.18 chapter 10).

Addresses of queries hold accession numbers and UIDs: no proxy of the environment is used, no redirection is followed,
and httpx logs nothing.
"""

import base64
import json
import os
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx

from client.fetch_reasons import NotFetched, Outcome
from client.pacs_file import DicomWeb, Pacs
from client.pacs_multipart import (
    MultipartError,
    MultipartParser,
    PartBegins,
    PartData,
    PartEnds,
    PartTooLarge,
    boundary_of,
)
from client.pacs_query import (
    MOST_ANSWERS,
    FoundInstance,
    FoundSeries,
    FoundStudy,
    Incoming,
    Receive,
    StudyQuery,
    checked_text,
    checked_uid,
)
from client.pacs_tls import tls_context
from client.quiet_libraries import silence
from shared_models.configuration import ConfigurationError

silence("httpx", "httpcore")

PAGE_SIZE = 200
LONGEST_ANSWER_BYTES = 64 << 20
NOBODYS_UID = "2.25.0"  # a UUID of zeros: no study has it
_TAGS = {
    "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E",
    "SOPInstanceUID": "00080018",
    "SOPClassUID": "00080016",
    "AccessionNumber": "00080050",
    "PatientID": "00100020",
    "StudyDate": "00080020",
    "Modality": "00080060",
}
_ALL = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@dataclass(frozen=True, slots=True, kw_only=True)
class WebAccess:
    """What a connection needs, read once: TLS and the header that lets the site in."""

    service: DicomWeb
    pacs: Pacs
    context: ssl.SSLContext | None
    authorization: str | None


def web_access(pacs: Pacs, service: DicomWeb) -> WebAccess:
    """Read certificates and credentials. Raises ConfigurationError."""
    return WebAccess(
        service=service,
        pacs=pacs,
        context=_context(service) if service.encrypted else None,
        authorization=_authorization(service),
    )


class WebConnection:
    """One connection to a DICOMweb service; see `client.pacs_query.PacsConnection`."""

    def __init__(self, access: WebAccess) -> None:
        self._root, self._max_object = access.service.url, access.pacs.max_object_mib << 20
        self._client = web_client(access)

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def ping(self) -> None:
        """Ask for a study that nobody has. Raises NotFetched."""
        self._query("/studies", {"StudyInstanceUID": NOBODYS_UID, "limit": "1"})

    def studies(self, query: StudyQuery) -> list[FoundStudy]:
        """The studies that fit (QIDO-RS, PS3.18 section 10.6)."""
        fields = [("includefield", _TAGS[name]) for name in ("AccessionNumber", "PatientID", "StudyDate")]
        return [
            FoundStudy(
                study=checked_uid(_text(entry, "StudyInstanceUID")),
                accession=_text(entry, "AccessionNumber"),
                patient=_text(entry, "PatientID"),
                day=_text(entry, "StudyDate"),
            )
            for entry in self._pages("/studies", [*query.keys().items(), *fields], "StudyInstanceUID")
        ]

    def series(self, study: str) -> list[FoundSeries]:
        """The series of a study."""
        found = self._pages(f"/studies/{study}/series", [], "SeriesInstanceUID")
        return [
            FoundSeries(
                series=checked_uid(_text(entry, "SeriesInstanceUID")), modality=_text(entry, "Modality")
            )
            for entry in found
        ]

    def instances(self, study: str, series: str) -> list[FoundInstance]:
        """The objects of a series."""
        found = self._pages(f"/studies/{study}/series/{series}/instances", [], "SOPInstanceUID")
        return [
            FoundInstance(
                instance=checked_uid(_text(entry, "SOPInstanceUID")), sop_class=_text(entry, "SOPClassUID")
            )
            for entry in found
        ]

    def retrieve(
        self, study: str, series: str, instances: Sequence[FoundInstance], receive: Receive, *, whole: bool
    ) -> None:
        """Have objects sent as they are stored (WADO-RS, PS3.18 section 10.4), in any transfer syntax."""
        path = f"/studies/{study}/series/{series}"
        if whole:
            self._download(path, receive)
            return
        for one in instances:
            self._download(f"{path}/instances/{one.instance}", receive)

    def _pages(self, path: str, keys: Sequence[tuple[str, str]], unique: str) -> Iterator[dict[str, object]]:
        """All entries of an answer that may come in several pages, each entry once (PS3.18 section 8.3.4.4)."""
        seen: set[str] = set()
        offset = 0
        while True:
            paging = [("limit", str(PAGE_SIZE)), ("offset", str(offset))]
            entries, more = self._query(path, [*keys, *paging])
            fresh = [entry for entry in entries if _text(entry, unique) not in seen]
            seen.update(_text(entry, unique) for entry in fresh)
            if len(seen) > MOST_ANSWERS:
                raise NotFetched(Outcome.PACS_ERROR, "(too many answers)")
            yield from fresh
            if not fresh or not (more or len(entries) >= PAGE_SIZE):
                return
            offset += len(entries)

    def _query(
        self, path: str, keys: Sequence[tuple[str, str]] | dict[str, str]
    ) -> tuple[list[dict[str, object]], bool]:
        """Entries of one page, and whether the service says that there are more (Warning 299)."""
        pairs = keys.items() if isinstance(keys, dict) else keys
        # An accession number may hold anything: everything but unreserved characters is escaped.
        text = "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs)
        with self._answer(f"{path}?{text}" if text else path, "application/dicom+json") as answer:
            if answer.status_code == 204:
                return [], False
            body = bytearray()
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > LONGEST_ANSWER_BYTES:
                    raise NotFetched(Outcome.PACS_ERROR, "(an answer is too long)")
        try:
            entries = json.loads(bytes(body) or b"[]")
        except (ValueError, RecursionError):
            raise NotFetched(Outcome.PACS_ERROR, "(an answer is not JSON)") from None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise NotFetched(Outcome.PACS_ERROR, "(an answer is no list of data sets)")
        return entries, "299" in answer.headers.get("warning", "")

    def _download(self, path: str, receive: Receive) -> None:
        with self._answer(path, _ALL) as answer:
            if answer.status_code == 204:
                return
            try:
                _take_parts(answer, receive, self._max_object)
            except PartTooLarge:
                raise NotFetched(Outcome.TOO_LARGE) from None
            except MultipartError as error:
                lost = "closing delimiter" in str(error)
                raise NotFetched(
                    Outcome.CONNECTION_LOST if lost else Outcome.PACS_ERROR, f"({error})"
                ) from None

    @contextmanager
    def _answer(self, path: str, accept: str) -> Iterator[httpx.Response]:
        """An answer of status 200 or 204, its body still to be read. Raises NotFetched, in the body too."""
        with (
            transport_trouble(),
            self._client.stream("GET", self._root + path, headers={"Accept": accept}) as answer,
        ):
            _check_status(answer.status_code)
            check_plain(answer)
            yield answer


def web_client(access: WebAccess) -> httpx.Client:
    """One connection over HTTP, by nobody's proxy and to no other address."""
    headers = {"Accept-Encoding": "identity"}
    if access.authorization is not None:
        headers["Authorization"] = access.authorization
    return httpx.Client(
        verify=access.context if access.context is not None else False,  # http only, where there is none
        timeout=access.pacs.timeout_seconds,
        headers=headers,
        trust_env=False,
        follow_redirects=False,
        limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
    )


@contextmanager
def transport_trouble() -> Iterator[None]:
    """Raise NotFetched where the connection fails."""
    try:
        yield
    except httpx.ConnectTimeout:
        raise NotFetched(Outcome.UNREACHABLE, "(no answer)") from None
    except httpx.ConnectError as error:
        told = "the certificate is refused" if "CERTIFICATE" in str(error) else "no connection"
        raise NotFetched(Outcome.UNREACHABLE, f"({told})") from None
    except httpx.TimeoutException:
        raise NotFetched(Outcome.TIMEOUT) from None
    except (httpx.TransportError, httpx.StreamError, httpx.DecodingError) as error:
        raise NotFetched(Outcome.CONNECTION_LOST, f"({type(error).__name__})") from None


def check_plain(answer: httpx.Response) -> None:
    """Raise NotFetched where the body is compressed.

    httpx would inflate a piece as a whole, and what is packed twice without any bound.
    """
    if answer.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise NotFetched(Outcome.PACS_ERROR, "(an answer is compressed, unasked)")


def _check_status(status: int) -> None:
    if status in (200, 204, 206):
        return
    if status in (401, 403, 407):
        raise NotFetched(Outcome.REFUSED, f"(status {status})")
    if status in (408, 504):
        raise NotFetched(Outcome.TIMEOUT, f"(status {status})")
    raise NotFetched(Outcome.PACS_ERROR, f"(status {status})")


def _take_parts(answer: httpx.Response, receive: Receive, max_object_bytes: int) -> None:
    """Put each part of the answer where it belongs."""
    parser = MultipartParser(
        boundary_of(answer.headers.get("content-type", "")), max_part_bytes=max_object_bytes
    )
    current: Incoming | None = None
    try:
        for piece in answer.iter_bytes():
            for event in parser.feed(piece):
                if isinstance(event, PartBegins):
                    kind = event.headers.get("content-type", "application/dicom").partition(";")[0].strip()
                    if kind.lower() != "application/dicom":
                        raise NotFetched(Outcome.WRONG_OBJECT, "(a part is not application/dicom)")
                    current = receive().__enter__()
                elif current is None:
                    raise RuntimeError("the parser begins a part before its data")
                elif isinstance(event, PartData):
                    current.write(event.data)
                elif isinstance(event, PartEnds):
                    current.accept()
                    current.__exit__(None, None, None)
                    current = None
        parser.close()
    finally:
        if current is not None:
            current.__exit__(None, None, None)


def _text(entry: dict[str, object], keyword: str) -> str:
    """The first value of an attribute in DICOM JSON (PS3.18 annex F), as text; empty where there is none."""
    attribute = entry.get(_TAGS[keyword])
    values = attribute.get("Value") if isinstance(attribute, dict) else None
    value = values[0] if isinstance(values, list) and values else None
    return checked_text(str(value)) if isinstance(value, str | int) else ""


def _context(service: DicomWeb) -> ssl.SSLContext:
    try:
        return tls_context(service.ca_certificate, service.client_certificate, service.client_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"[pacs.dicomweb]: certificates or key cannot be used ({type(error).__name__}); they must be PEM files"
        ) from error


def _authorization(
    service: DicomWeb, environment: Callable[[str], str | None] = os.environ.get
) -> str | None:
    """The Authorization header (RFC 7617, RFC 6750). Raises ConfigurationError, which holds nothing of it."""
    if service.authentication == "none":
        return None
    if service.credentials_variable is not None:
        where = f"the variable {service.credentials_variable} of the environment"
        text = environment(service.credentials_variable)
        if text is None:
            raise ConfigurationError(f"[pacs.dicomweb]: {where} is not set")
    else:
        where, text = str(service.credentials_file), _private_text(service.credentials_file)
    text = text.strip()
    if not text.isascii() or not text.isprintable() or not text:
        raise ConfigurationError(f"[pacs.dicomweb]: {where} must hold one line of ASCII characters")
    if service.authentication == "bearer":
        return f"Bearer {text}"
    if ":" not in text:
        raise ConfigurationError(f"[pacs.dicomweb]: {where} must hold user:password")
    return "Basic " + base64.b64encode(text.encode("ascii")).decode("ascii")


def _private_text(path: Path | None) -> str:
    if path is None:
        raise RuntimeError("credentials come from a file or a variable")
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(
                f"{path}: others may read it; find out who could, then run: chmod 600 {path}"
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not text") from error
