"""Storing by DICOMweb: STOW-RS, one object a request (PS3.18 section 10.5)."""

import json
import secrets
from pathlib import Path

import httpx
from pydicom.uid import UID

from client.fetch_reasons import NotFetched
from client.pacs_web import LONGEST_ANSWER_BYTES, WebAccess, check_plain, transport_trouble, web_client
from client.prediction.dicom_results.storing_outcomes import NotStored, Storing, refused_with

_FAILED, _REASON, _STORED, _WARNING = "00081198", "00081197", "00081199", "00081196"


class WebStore:
    """One connection to a DICOMweb service."""

    def __init__(self, access: WebAccess) -> None:
        self._url = f"{access.service.url}/studies"
        self._client = web_client(access)

    def store(self, path: Path, sop_class: UID) -> str:
        """Store one file. Returns what the PACS changed, as a code; nothing where it says nothing. Raises NotStored."""
        boundary = secrets.token_hex(16)
        body = b"".join(
            (
                f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode(),
                path.read_bytes(),
                f"\r\n--{boundary}--\r\n".encode(),
            )
        )
        headers = {
            "Accept": "application/dicom+json",
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        }
        try:
            with (
                transport_trouble(),
                self._client.stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                return _checked(answer.status_code, _body(answer), sop_class.name)
        except NotFetched as trouble:
            raise NotStored.of(trouble) from None

    def close(self) -> None:
        """End the connection."""
        self._client.close()


def _body(answer: httpx.Response) -> bytes:
    check_plain(answer)
    body = bytearray()
    for piece in answer.iter_bytes():
        body += piece
        if len(body) > LONGEST_ANSWER_BYTES:
            raise NotStored(Storing.PACS_ERROR, "(an answer is too long)")
    return bytes(body)


def _checked(status: int, body: bytes, kind: str) -> str:
    """What was changed, as a code. Raises NotStored."""
    told = f"(status {status})"
    if status in (401, 403, 407):
        raise NotStored(Storing.REFUSED, told)
    if status in (404, 405, 501):
        raise NotStored(Storing.NO_SERVICE, told)
    if status in (408, 504):
        raise NotStored(Storing.TIMEOUT, told)
    if status in (413, 507):
        raise NotStored(Storing.NO_ROOM, told)
    reason = _first_code(body, _FAILED, _REASON)
    if reason is not None:
        raise refused_with(reason, kind)
    if status not in (200, 202):
        raise NotStored(Storing.OBJECT_REFUSED if status == 409 else Storing.PACS_ERROR, told)
    warning = _first_code(body, _STORED, _WARNING)
    return "" if not warning else f"code {warning:04X}"


def _first_code(body: bytes, sequence: str, attribute: str) -> int | None:
    """A code of the first item of a sequence of the answer (PS3.18 annex F); None where there is none."""
    try:
        answer = json.loads(body)
        answer = answer[0] if isinstance(answer, list) else answer
        (item, *_) = answer[sequence]["Value"]
        return int(item[attribute]["Value"][0])
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
