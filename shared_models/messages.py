"""Requests and replies between the server and a site, and their one encoding as bytes.

A message is a header and one payload::

    b"CLG3" | header length (4 bytes, big-endian) | header (canonical JSON) | payload

The header carries only what every participant may know. The payload of ``train`` and ``evaluate`` is the global
model (little-endian float32), that of all other requests and of every answer a message of secure aggregation
(`privacy.secure_aggregation.messages`) or nothing. Decoding refuses anything that the encoder would not have written.
"""

import json
import struct
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from shared_models.configuration import Frozen
from shared_models.study import canonical_json

MAGIC = b"CLG3"
MAX_HEADER_BYTES = 1 << 16

RunId: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,79}$")]
Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
StudyHash: TypeAlias = Sha256
RoundSet: TypeAlias = Annotated[tuple[int, ...], Field(max_length=1000, strict=False)]


class MessageError(ValueError):
    """Bytes that are not a message of this version of Collegium."""


class Open(Frozen):
    """The site is asked to take part in a run: check the study, policy and budget, and make its data ready.

    The payload is the site's own last confirmation as the server knows it (`privacy.secure_aggregation.receipts`), or
    nothing.
    """

    kind: Literal["open"] = "open"
    run_id: RunId
    study_hash: StudyHash
    manifest_hash: Sha256
    roster_hash: Sha256


class Advertise(Frozen):
    """First step of a batch of secure aggregation: the site makes a fresh sealing key."""

    kind: Literal["advertise"] = "advertise"
    run_id: RunId
    study_hash: StudyHash


class Share(Frozen):
    """Second step: the site deals shares of the batch's secrets to its peers."""

    kind: Literal["share"] = "share"
    run_id: RunId
    study_hash: StudyHash


class Escrow(Frozen):
    """Third step: the site takes its peers' shares, and escrows its pair seeds."""

    kind: Literal["escrow"] = "escrow"
    run_id: RunId
    study_hash: StudyHash


class Train(Frozen):
    """The site is asked to train from the global model in the payload.

    ``round_set``: positions in the batch's cohort of the sites whose vectors the sum may hold. ``reductions``: how
    often the learning rate was reduced so far; more than the study's validations can have led to is refused.
    """

    kind: Literal["train"] = "train"
    run_id: RunId
    study_hash: StudyHash
    round: int = Field(ge=1, lt=2**31)
    round_set: RoundSet
    reductions: int = Field(default=0, ge=0, lt=2**31)


class Evaluate(Frozen):
    """The site is asked to evaluate the final global model in the payload on its test patients."""

    kind: Literal["evaluate"] = "evaluate"
    run_id: RunId
    study_hash: StudyHash
    round: int = Field(ge=1, lt=2**31)
    round_set: RoundSet


class Confirm(Frozen):
    """The site is told whose vectors are in the sum of the round, and asked to sign it."""

    kind: Literal["confirm"] = "confirm"
    run_id: RunId
    study_hash: StudyHash
    round: int = Field(ge=1, lt=2**31)


class Unmask(Frozen):
    """The site is shown who confirmed, and asked for its shares that open the sum."""

    kind: Literal["unmask"] = "unmask"
    run_id: RunId
    study_hash: StudyHash
    round: int = Field(ge=1, lt=2**31)


class Close(Frozen):
    """The run is over; the site writes its local result."""

    kind: Literal["close"] = "close"
    run_id: RunId
    study_hash: StudyHash


class Answer(Frozen):
    """The site did as asked. ``to`` is the kind of the request; the payload is what that kind asks for.

    ``round`` is 0 outside of rounds.
    """

    kind: Literal["answer"] = "answer"
    to: Literal["open", "advertise", "share", "escrow", "train", "evaluate", "confirm", "unmask", "close"]
    run_id: RunId
    round: int = Field(ge=0)


class Refusal(Frozen):
    """The site does not do as asked. ``reason`` is a code; the details stay in the site's own log."""

    kind: Literal["refusal"] = "refusal"
    run_id: RunId
    reason: Literal[
        "study-not-approved",
        "awaiting-approval",
        "model-differs",
        "policy",
        "data",
        "budget",
        "round-already-attempted",
        "not-open",
        "roster-differs",
        "no-batch",
        "protocol",
        "journal",
        "failed",
    ]


Request: TypeAlias = Open | Advertise | Share | Escrow | Train | Evaluate | Confirm | Unmask | Close
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
