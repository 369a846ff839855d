"""A PACS over DIMSE: C-FIND for questions, C-GET or C-MOVE for images (PS3.4 annex C, PS3.7 chapter 9).

One association at a time for each connection. It offers every transfer syntax in a presentation context of its own,
so that the PACS can send each object as it has it: within one context it would choose one for all (PS3.8 section 9.3).
"""

import errno
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import (
    AE,
    AllStoragePresentationContexts,
    _config,
    build_context,
    build_role,
    evt,
)
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)
from pynetdicom.transport import AssociationSocket

from client.dicom_file import check_character_set
from client.fetch_reasons import NotFetched, Outcome
from client.pacs_file import Dimse, Pacs
from client.pacs_query import (
    MOST_ANSWERS,
    FoundInstance,
    FoundSeries,
    FoundStudy,
    Receive,
    StudyQuery,
    checked_text,
    checked_uid,
)
from client.pacs_tls import tls_context
from client.quiet_libraries import silence
from shared_models.configuration import ConfigurationError

# pynetdicom's log lines quote queries and answers.
silence("pynetdicom")
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False


def _end(self: AssociationSocket) -> None:
    """Close the socket, also one that its peer reset or that never connected.

    pynetdicom's own way stops at the shutdown, which fails on such a socket, and leaves it open.
    """
    ended = self.socket
    if ended is not None:
        with suppress(OSError):
            ended.shutdown(socket.SHUT_RDWR)
        ended.close()


AssociationSocket._shutdown_socket = _end  # type: ignore[method-assign]


def leave(association: Association) -> None:
    """Close the socket of an association that is over: pynetdicom's thread may have died before it did."""
    connection = association.dul.socket
    current = None if connection is None else connection.socket
    if connection is None or current is None:
        return
    with suppress(OSError):
        current.shutdown(socket.SHUT_RDWR)  # wakes the thread, where it is alive
    if association.dul.is_alive():
        association.dul.join(1.0)
    _end(connection)


FIND = StudyRootQueryRetrieveInformationModelFind
GET = StudyRootQueryRetrieveInformationModelGet
MOVE = StudyRootQueryRetrieveInformationModelMove
# Not Deflated Explicit VR Little Endian: what is deflated cannot be bounded before it is inflated.
TRANSFER_SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    HTJ2K,
)
MOST_CONTEXTS = 128  # PS3.8 table 9-11: identifiers are the odd numbers up to 255
MOST_CLASSES = (MOST_CONTEXTS - 3) // len(TRANSFER_SYNTAXES)
LONGEST_PDU = 1 << 20
"""Bytes. We allow 16,382 for data (PS3.8 annex D.1); proposals and their answers may be longer."""
INSTANCES_AT_ONCE = 50
PENDING = (0xFF00, 0xFF01)
STORED, CANNOT_STORE, OUT_OF_RESOURCES = 0x0000, 0xC000, 0xA700
_REFUSALS = {
    (1, 3): "does not know this site's AE title",
    (1, 7): "is not the called AE title",
    (1, 2): "does not know the application context",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DimseAccess:
    """What a connection needs, read once."""

    service: Dimse
    pacs: Pacs
    context: ssl.SSLContext | None
    receiver: "StorageReceiver | None" = None


@contextmanager
def dimse_access(pacs: Pacs, service: Dimse) -> Iterator[DimseAccess]:
    """Read certificates, and listen where the PACS is to connect to this machine. Raises ConfigurationError."""
    context = None
    if service.tls:
        try:
            context = tls_context(service.ca_certificate, service.client_certificate, service.client_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"[pacs.dimse]: certificates or key cannot be used ({type(error).__name__}); they must be PEM files"
            ) from error
    if service.retrieve == "get":
        yield DimseAccess(service=service, pacs=pacs, context=context)
        return
    receiver = StorageReceiver(
        service, timeout_seconds=pacs.timeout_seconds, max_object_bytes=pacs.max_object_mib << 20
    )
    try:
        yield DimseAccess(service=service, pacs=pacs, context=context, receiver=receiver)
    finally:
        receiver.close()


class DimseConnection:
    """One association to a PACS, made when it is needed; see `client.pacs_query.PacsConnection`."""

    def __init__(self, access: DimseAccess) -> None:
        self._access, self._service = access, access.service
        self._association: Association | None = None
        self._classes: tuple[str, ...] = ()
        self._answered = self._busy = self._closed = False
        self._receive: Receive | None = None
        self._enough = threading.Event()
        self._trouble: NotFetched | None = None

    def close(self) -> None:
        """Release the association, where there is one; abort it in the middle of an answer. There is no other after."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        association, self._association = self._association, None
        if association is not None and association.is_established:
            if self._busy:
                association.abort()
            else:
                association.release()
        if association is not None:
            leave(association)
        self._busy = False

    def ping(self) -> frozenset[str]:
        """Ask whether the PACS is there (C-ECHO). Returns what it lacks of what is needed. Raises NotFetched."""
        association = self._associated(verify=True)
        lacking = frozenset(
            UID(context.abstract_syntax or "").name
            for context in association.rejected_contexts
            if context.abstract_syntax in (FIND, GET, MOVE)
        )
        if not any(context.abstract_syntax == Verification for context in association.accepted_contexts):
            return lacking
        begun = time.monotonic()
        self._check(association.send_c_echo(), begun)
        return lacking

    def studies(self, query: StudyQuery) -> list[FoundStudy]:
        """The studies that fit."""
        wanted = {
            "StudyInstanceUID": "",
            "AccessionNumber": "",
            "PatientID": "",
            "StudyDate": "",
            **query.keys(),
        }
        return [
            FoundStudy(
                study=checked_uid(_text(answer, "StudyInstanceUID")),
                accession=_text(answer, "AccessionNumber"),
                patient=_text(answer, "PatientID"),
                day=_text(answer, "StudyDate"),
            )
            for answer in self._find("STUDY", wanted)
        ]

    def series(self, study: str) -> list[FoundSeries]:
        """The series of a study."""
        wanted = {"StudyInstanceUID": study, "SeriesInstanceUID": "", "Modality": ""}
        return [
            FoundSeries(
                series=checked_uid(_text(answer, "SeriesInstanceUID")), modality=_text(answer, "Modality")
            )
            for answer in self._find("SERIES", wanted)
        ]

    def instances(self, study: str, series: str) -> list[FoundInstance]:
        """The objects of a series."""
        wanted = {
            "StudyInstanceUID": study,
            "SeriesInstanceUID": series,
            "SOPInstanceUID": "",
            "SOPClassUID": "",
        }
        return [
            FoundInstance(
                instance=checked_uid(_text(answer, "SOPInstanceUID")), sop_class=_text(answer, "SOPClassUID")
            )
            for answer in self._find("IMAGE", wanted)
        ]

    def retrieve(
        self, study: str, series: str, instances: Sequence[FoundInstance], receive: Receive, *, whole: bool
    ) -> None:
        """Have objects sent, by C-GET or C-MOVE."""
        keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        if whole:
            self._bring(_identifier("SERIES", keys), instances, receive)
            return
        for start in range(0, len(instances), INSTANCES_AT_ONCE):
            some = instances[start : start + INSTANCES_AT_ONCE]
            identifier = _identifier("IMAGE", keys)
            identifier.SOPInstanceUID = [one.instance for one in some]
            self._bring(identifier, some, receive)

    def _bring(self, identifier: Dataset, instances: Sequence[FoundInstance], receive: Receive) -> None:
        receiver = self._access.receiver
        if receiver is not None:
            association, begun = self._associated(), time.monotonic()
            _check_offered(association, MOVE, "C-MOVE")
            with receiver.expecting([one.instance for one in instances], receive) as trouble:
                self._busy = True
                for status, _ in association.send_c_move(identifier, self._service.calling_ae_title, MOVE):
                    begun = self._checked_part(status, begun)
                self._busy = False
                if trouble:
                    raise trouble[0]
            return
        classes = sorted({one.sop_class for one in instances if one.sop_class})
        association, begun = self._associated(classes), time.monotonic()
        _check_offered(association, GET, "C-GET")
        self._receive, self._trouble = receive, None
        try:
            self._busy = True
            for status, _ in association.send_c_get(identifier, GET):
                begun = self._checked_part(status, begun)
            self._busy = False
        finally:
            self._receive = None
        if self._trouble is not None:
            raise self._trouble

    def _checked_part(self, status: Dataset, begun: float) -> float:
        """Check one answer to a retrieval; warnings are of single objects, which will be missed. Returns the time."""
        if self._trouble is not None and self._trouble.outcome.fatal:
            raise self._trouble
        if status.get("Status") not in (*PENDING, 0xB000):
            self._check(status, begun)
        return time.monotonic()

    def _find(self, level: str, keys: dict[str, str]) -> list[Dataset]:
        association, begun = self._associated(), time.monotonic()
        _check_offered(association, FIND, "queries of study root")
        found: list[Dataset] = []
        self._busy = True
        for status, answer in association.send_c_find(_identifier(level, keys), FIND):
            if status.get("Status") in PENDING and answer is not None:
                found.append(answer)
                if len(found) > MOST_ANSWERS:
                    raise NotFetched(Outcome.PACS_ERROR, "(too many answers)")
            else:
                self._check(status, begun)
            begun = time.monotonic()
        self._busy = False
        return found

    def _check(self, status: Dataset, begun: float) -> None:
        """Raise NotFetched unless the status is success (PS3.7 annex C, PS3.4 tables C.4-1 to C.4-3)."""
        code = status.get("Status")
        if code is None:
            if self._trouble is not None:
                raise self._trouble
            if time.monotonic() - begun >= 0.95 * self._access.pacs.timeout_seconds:
                raise NotFetched(Outcome.TIMEOUT)
            if not self._answered:
                raise NotFetched(
                    Outcome.REFUSED,
                    "(it ended the association at the first question: this AE title may not ask)",
                )
            raise NotFetched(Outcome.CONNECTION_LOST)
        self._answered = True
        if code == 0:
            return
        if code == 0xA801:
            raise NotFetched(Outcome.REFUSED, "(status A801: it does not know where this AE title is)")
        if code == 0x0124:
            raise NotFetched(Outcome.REFUSED, "(status 0124: not authorised)")
        raise NotFetched(Outcome.PACS_ERROR, f"(status {int(code):04X})")

    def _associated(self, classes: Sequence[str] = (), *, verify: bool = False) -> Association:
        """The association, made anew where it ended, or cannot bring objects of these classes. Raises NotFetched."""
        current = self._association
        if current is not None and current.is_established and set(classes) <= set(self._classes):
            return current
        if self._closed:
            raise NotFetched(Outcome.CONNECTION_LOST)
        self._drop()
        together = tuple(sorted({*self._classes, *classes}))
        if len(together) > MOST_CLASSES:
            together = tuple(classes)
        if len(together) > MOST_CLASSES:
            raise NotFetched(Outcome.PACS_ERROR, f"(a series of {len(together)} kinds of objects)")
        self._classes, self._answered = together, False
        self._association = self._associate(_contexts(self._service, together, verify=verify))
        return self._association

    def _associate(self, contexts: list[PresentationContext]) -> Association:
        self._enough = threading.Event()
        return associate(
            self._access,
            contexts,
            roles=self._classes,
            handlers=[(evt.EVT_C_STORE, self._store)],
            enough=self._enough,
            exceeded=self._exceeded,
        )

    def _store(self, event: evt.Event) -> int:
        """Take one object of a C-GET; what is wrong with it is told when the PACS is done."""
        receive = self._receive
        if receive is None:
            return CANNOT_STORE
        self._answered = True
        status, trouble = take(event, receive)
        self._trouble = self._trouble or trouble
        if (
            trouble is not None and trouble.outcome is Outcome.PACS_ERROR
        ):  # more than was asked for, without end
            event.assoc.abort(block=False)
        return status

    def _exceeded(self) -> None:
        self._trouble = self._trouble or NotFetched(Outcome.TOO_LARGE)


def associate(
    access: DimseAccess,
    contexts: list[PresentationContext],
    *,
    roles: Sequence[str] = (),
    handlers: Sequence[evt.EventHandlerType] = (),
    enough: threading.Event | None = None,
    exceeded: Callable[[], None] = lambda: None,
) -> Association:
    """Make an association.

    Args:
        access: to the PACS.
        contexts: that are proposed.
        roles: SOP classes whose objects the PACS is to send (C-GET).
        handlers: pynetdicom's, of what the PACS asks for.
        enough: once it is set, nothing more is received.
        exceeded: called where the PACS sends too much at once.

    Raises:
        NotFetched: it is not there, or does not let this site in.
    """
    service, seconds = access.service, access.pacs.timeout_seconds
    entity = AE(ae_title=service.calling_ae_title)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = seconds
    context, max_object_bytes = access.context, access.pacs.max_object_mib << 20
    begun = time.monotonic()
    association = entity.associate(
        service.host,
        service.port,
        contexts=contexts,
        ae_title=service.called_ae_title,
        ext_neg=[build_role(UID(uid), scp_role=True) for uid in roles],
        tls_args=None if context is None else (context, service.host),
        evt_handlers=[
            *handlers,
            (evt.EVT_CONN_OPEN, _opened, [max_object_bytes, enough or threading.Event(), exceeded]),
        ],
    )
    if association.is_established:
        return association
    leave(association)
    if association.is_rejected:
        answer = association.acceptor.primitive
        why = (0, 0) if answer is None else (answer.result_source or 0, answer.diagnostic or 0)
        told = _REFUSALS.get(why, f"source {why[0]}, reason {why[1]}")
        raise NotFetched(Outcome.REFUSED, f"(association rejected: {told})")
    if association.acceptor.primitive is not None:
        raise NotFetched(Outcome.REFUSED, "(it accepts none of what was proposed)")
    slow = time.monotonic() - begun >= 0.95 * seconds
    raise NotFetched(Outcome.UNREACHABLE, "(no answer)" if slow else "(no association)")


class StorageReceiver:
    """Takes the objects that a PACS sends for a C-MOVE: a storage SCP. It takes only those that were just asked for.

    Args:
        service: where to listen, and under which AE title.
        timeout_seconds: without a word for so long, a connection of the PACS ends.
        max_object_bytes: of one object.

    Raises:
        ConfigurationError: it cannot listen there.
    """

    def __init__(self, service: Dimse, *, timeout_seconds: float, max_object_bytes: int) -> None:
        self._lock = threading.Lock()
        self._pending: dict[str, tuple[Receive, list[NotFetched]]] = {}
        entity = AE(ae_title=service.calling_ae_title)
        entity.require_called_aet = True
        entity.network_timeout = entity.acse_timeout = entity.dimse_timeout = timeout_seconds
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(str(context.abstract_syntax), list(TRANSFER_SYNTAXES))
        entity.add_supported_context(Verification)
        if service.listen_host is None or service.listen_port is None:
            raise RuntimeError("C-MOVE has an address to listen at")
        try:
            self._server = entity.start_server(
                (service.listen_host, service.listen_port),
                block=False,
                ssl_context=_serving(service),
                evt_handlers=[
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_CONN_OPEN, _opened, [max_object_bytes, threading.Event()]),
                ],
            )
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"[pacs.dimse]: cannot listen at {service.listen_host}:{service.listen_port} "
                f"({error.strerror or type(error).__name__}); choose another listen_port, and tell the PACS team"
            ) from error

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.shutdown()

    @contextmanager
    def expecting(self, instances: Sequence[str], receive: Receive) -> Iterator[list[NotFetched]]:
        """Take objects with these SOP Instance UIDs meanwhile. Yields what was wrong with them, which grows."""
        trouble: list[NotFetched] = []
        with self._lock:
            self._pending.update(dict.fromkeys(instances, (receive, trouble)))
        try:
            yield trouble
        finally:
            with self._lock:
                for instance in instances:
                    self._pending.pop(instance, None)

    def _store(self, event: evt.Event) -> int:
        """Take one object. What nobody asked for is not parsed, and is no trouble: anybody may have sent it."""
        with self._lock:
            pending = self._pending.get(str(getattr(event.request, "AffectedSOPInstanceUID", "")))
        if pending is None:
            return CANNOT_STORE
        receive, troubles = pending
        status, trouble = take(event, receive)
        if trouble is not None:
            troubles.append(trouble)
        return status


def take(event: evt.Event, receive: Receive) -> tuple[int, NotFetched | None]:
    """Write the object of a C-STORE as it came. Returns the status for the PACS, and what was wrong."""
    try:
        with receive() as incoming:
            incoming.write(event.encoded_dataset())
            incoming.accept()
    except NotFetched as trouble:
        return (OUT_OF_RESOURCES if trouble.outcome.fatal else CANNOT_STORE), trouble
    except (AttributeError, ValueError, TypeError, KeyError):  # the request lacks what a file needs
        return CANNOT_STORE, NotFetched(Outcome.WRONG_OBJECT, "(a malformed C-STORE)")
    return STORED, None


def _opened(
    event: evt.Event,
    max_object_bytes: int,
    enough: threading.Event,
    exceeded: Callable[[], None] = lambda: None,
) -> None:
    """Prepare a new connection: bound what its peer may send, and switch Nagle's algorithm off.

    A request is two small writes, and with it the second would wait for the first's answer.
    """
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        longest = max_object_bytes + (max_object_bytes >> 4) + LONGEST_PDU
        bounded = _BoundedReceiving(connection, longest, enough, exceeded)
        event.assoc.bind(evt.EVT_DIMSE_RECV, bounded.message_came)


class _BoundedReceiving:
    """Ends a connection on which a PDU, or a message of several, is too long: pynetdicom holds both in memory.

    Args:
        connection: pynetdicom's.
        longest_message: bytes.
        enough: once it is set, nothing more is received.
        exceeded: called where something is too long.
    """

    def __init__(
        self,
        connection: AssociationSocket,
        longest_message: int,
        enough: threading.Event,
        exceeded: Callable[[], None],
    ) -> None:
        self._receive, self._left, self._longest = connection.recv, longest_message, longest_message
        self._enough, self._exceeded = enough, exceeded
        connection.recv = self.receive  # type: ignore[method-assign]

    def receive(self, nr_bytes: int) -> bytearray:
        """Receive so many bytes. Raises OSError, which ends the connection."""
        self._left -= nr_bytes
        too_long = nr_bytes > LONGEST_PDU or self._left < 0
        if too_long:
            self._exceeded()
        if too_long or self._enough.is_set():
            raise OSError(errno.EMSGSIZE, "more than allowed")
        return self._receive(nr_bytes)

    def message_came(self, event: evt.Event) -> None:
        """Begin to count anew."""
        self._left = self._longest


def _contexts(service: Dimse, classes: Sequence[str], *, verify: bool) -> list[PresentationContext]:
    contexts = [build_context(FIND), build_context(GET if service.retrieve == "get" else MOVE)]
    if verify:
        contexts.append(build_context(Verification))
    return contexts + [build_context(uid, syntax) for uid in classes for syntax in TRANSFER_SYNTAXES]


def _check_offered(association: Association, syntax: str, what: str) -> None:
    """Raise NotFetched where the PACS did not accept this service."""
    if not any(context.abstract_syntax == syntax for context in association.accepted_contexts):
        raise NotFetched(Outcome.REFUSED, f"(it offers this site no {what})")


def _identifier(level: str, keys: dict[str, str]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    if not all(value.isascii() for value in keys.values()):
        identifier.SpecificCharacterSet = "ISO_IR 192"
    return identifier


def _text(answer: Dataset, keyword: str) -> str:
    """A value of an answer as text; empty where there is none. Raises NotFetched where it cannot be read."""
    try:
        check_character_set(answer)
        value = answer.get(keyword)
        text = "" if value is None else str(value)
    except Exception:  # noqa: BLE001 - pydicom raises anything on values that are none
        raise NotFetched(Outcome.PACS_ERROR, "(an answer cannot be read)") from None
    return checked_text(text)


def _serving(service: Dimse) -> ssl.SSLContext | None:
    """TLS of the PACS's own connections: with this site's certificate, and a certificate of the same authority."""
    if not service.tls:
        return None
    if service.client_certificate is None or service.client_key is None:
        raise ConfigurationError(
            '[pacs.dimse]: retrieve = "move" with tls needs client_certificate and client_key, for the PACS to check'
        )
    context = _ServingContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(service.client_certificate, service.client_key)
    context.verify_mode = ssl.CERT_REQUIRED
    if service.ca_certificate is None:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    else:
        context.load_verify_locations(service.ca_certificate)
    return context


class _ServingContext(ssl.SSLContext):
    """Shakes hands with the first read, in that connection's own thread.

    pynetdicom would do it where it accepts connections: one that says nothing would keep all others out.
    """

    def wrap_socket(  # noqa: PLR0917 - as in ssl
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = False,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        """Wrap a socket without a word to its peer."""
        return super().wrap_socket(sock, server_side, False, suppress_ragged_eofs, server_hostname, session)
