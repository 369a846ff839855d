"""Requests and replies between the server and a site, and their one encoding as bytes.

A message is a header and one payload::

    b"CLG1" | header length (4 bytes, big-endian) | header (canonical JSON) | payload

The header carries only what every participant may know. The payload of a request is the global model
(little-endian float32), that of an answer is the site's one integer vector (little-endian uint32). Decoding
refuses anything that the encoder would not have written.
"""

import json
import struct
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from shared_models.configuration import Frozen
from shared_models.study import canonical_json

MAGIC = b"CLG1"
MAX_HEADER_BYTES = 1 << 16

RunId: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,79}$")]
StudyHash: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class MessageError(ValueError):
    """Bytes that are not a message of this version of Collegium."""


class Open(Frozen):
    """The site is asked to take part in a run: check the study, policy and budget, and make its data ready."""

    kind: Literal["open"] = "open"
    run_id: RunId
    study_hash: StudyHash
    manifest_hash: StudyHash


class Train(Frozen):
    """The site is asked to train from the global model in the payload."""

    kind: Literal["train"] = "train"
    run_id: RunId
    study_hash: StudyHash
    round: int = Field(ge=1)


class Evaluate(Frozen):
    """The site is asked to evaluate the final global model in the payload on its test patients."""

    kind: Literal["evaluate"] = "evaluate"
    run_id: RunId
    study_hash: StudyHash


class Close(Frozen):
    """The run is over; the site writes its local result."""

    kind: Literal["close"] = "close"
    run_id: RunId
    study_hash: StudyHash


class Answer(Frozen):
    """The site did as asked; its vector, if the request asks for one, is the payload."""

    kind: Literal["answer"] = "answer"
    run_id: RunId
    round: int = Field(ge=0)


class Refusal(Frozen):
    """The site does not take part. ``reason`` is a code; the details stay in the site's own log."""

    kind: Literal["refusal"] = "refusal"
    run_id: RunId
    reason: Literal[
        "study-not-approved",
        "model-differs",
        "policy",
        "data",
        "budget",
        "round-already-attempted",
        "not-open",
        "failed",
    ]


Request: TypeAlias = Open | Train | Evaluate | Close
Reply: TypeAlias = Answer | Refusal
Header: TypeAlias = Request | Reply

HeaderType = TypeVar("HeaderType", bound=Header)
_REQUESTS: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="kind")])
_REPLIES: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="kind")])


def encode(header: Header, payload: bytes = b"") -> bytes:
    """Return the bytes of a message."""
    text = canonical_json(header)
    return MAGIC + struct.pack(">I", len(text)) + text + payload


def decode_request(message: bytes) -> tuple[Request, bytes]:
    """Return header and payload. Raises MessageError on anything else than an encoded request."""
    return _decode(message, _REQUESTS)


def decode_reply(message: bytes) -> tuple[Reply, bytes]:
    """Return header and payload. Raises MessageError on anything else than an encoded reply."""
    return _decode(message, _REPLIES)


def _decode(message: bytes, adapter: TypeAdapter[HeaderType]) -> tuple[HeaderType, bytes]:
    if message[:4] != MAGIC or len(message) < 8:
        raise MessageError(
            f"does not begin with {MAGIC!r}; the peer speaks another version or is not Collegium"
        )
    (length,) = struct.unpack(">I", message[4:8])
    if length > MAX_HEADER_BYTES or len(message) < 8 + length:
        raise MessageError(f"the header claims {length} bytes, more than there are or may be")
    text, payload = message[8 : 8 + length], message[8 + length :]
    try:
        header = adapter.validate_json(text)
    except (ValidationError, json.JSONDecodeError) as error:
        raise MessageError("the header is not one of this version") from error
    if canonical_json(header) != text:
        raise MessageError("the header is not in canonical form")
    return header, payload
