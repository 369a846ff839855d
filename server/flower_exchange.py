"""The exchange over Flower: requests out, replies in as they arrive.

Flower's own ``Grid.pull_messages`` is not used: it waits until every part of every reply that was announced has
been uploaded, so one site with a stalled upload would hold back all others and outlast the deadline. Here each
reply is taken part by part, whenever a part is there, and one that is not complete at the deadline is dropped.
"""

import json
import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

from server.exchange import Deadline, ExchangeError, SiteReply
from shared_models.node_keys import NodeKeyError, canonical_line
from shared_models.roster import Roster

BODY = "body"
FIRST_PAUSE_SECONDS = 0.03
LONGEST_PAUSE_SECONDS = 0.5
MAX_PARTS = 10_000
MAX_HEADER_PART_BYTES = 1 << 20
WHOLE_BYTES = 5 << 20
LEAST_REPLY_LIMIT = 64 << 20


log = logging.getLogger("collegium.exchange")


class ReplyRefused(ValueError):
    """A reply that is not in the form that a site's forwarder writes."""


@dataclass(slots=True)
class _Arriving:
    """A reply that was announced, and the parts of it that are here."""

    site: str
    message_id: str
    missing: list[str]
    parts: dict[str, bytes] = field(default_factory=dict)
    num_bytes: int = 0


class FlowerExchange:
    """`server.exchange.Exchange` over a Flower grid.

    A site is known by the public key with which its node proved itself to the SuperLink. Each request carries a
    random token in its identity, so that no other site can guess what it would have to answer to.

    Args:
        grid: the grid of the running ServerApp task.
        roster: the sites; nobody else is ever addressed.
    """

    def __init__(self, grid: Any, roster: Roster) -> None:
        self._grid = grid
        self._roster = roster
        self._abandoned: list[str] = []

    def known_sites(self) -> tuple[str, ...]:
        """Names of all sites of the roster, connected or not, sorted."""
        return tuple(sorted(entry.name for entry in self._roster.site))

    def sites(self) -> tuple[str, ...]:
        """Names of the sites that are connected now, sorted. Raises ExchangeError."""
        return tuple(sorted(self._nodes()))

    def exchange(
        self,
        requests: Mapping[str, bytes],
        *,
        timeout_seconds: float,
        enough: int | None = None,
        grace_seconds: float = 0.0,
    ) -> Iterator[SiteReply]:
        """Send each site its request at once; the iterator yields each reply once, as it arrives.

        Args:
            requests: encoded request by site name. Sites that are not connected are left out.
            timeout_seconds: time from now after which replies are thrown away; also the messages' time to live.
            enough: after so many replies the others have *grace_seconds* at most.
            grace_seconds: see *enough*.

        Raises:
            ExchangeError: the SuperLink failed.
        """
        deadline = Deadline(
            time.monotonic, timeout_seconds=timeout_seconds, enough=enough, grace_seconds=grace_seconds
        )
        limit = max(LEAST_REPLY_LIMIT, 4 * max(map(len, requests.values()), default=0))
        waiting = self._send(requests, timeout_seconds)
        return self._replies(waiting, deadline, limit)

    def _nodes(self) -> dict[str, int]:
        """Site name → node id of the roster's sites that are connected."""
        try:
            nodes = list(self._grid.get_nodes())
        except httpx.HTTPError as error:
            raise ExchangeError(f"the SuperLink did not list its nodes: {error}") from error
        found: dict[str, int] = {}
        for node in nodes:
            try:
                name = self._roster.name_of(canonical_line(bytes(node.public_key).decode("ascii", "replace")))
            except NodeKeyError:
                continue
            if name is not None:
                found[name] = int(node.node_id)
        return found

    def _send(self, requests: Mapping[str, bytes], timeout_seconds: float) -> dict[str, str]:
        """Push all requests. Returns message id → site."""
        self._forget_abandoned()
        nodes = self._nodes()
        records: dict[
            int, ArrayRecord | ConfigRecord
        ] = {}  # by identity of the bytes: equal requests are encoded once
        addressed: list[str] = []
        messages: list[Message] = []
        for site, body in requests.items():
            if site not in nodes:
                continue
            record = records.setdefault(id(body), _record(body))
            content = RecordDict({BODY: record})
            token = secrets.token_hex(16)
            messages.append(Message(content, nodes[site], "query", ttl=timeout_seconds, group_id=token))
            addressed.append(site)
        if not messages:
            return {}
        try:
            identities = list(self._grid.push_messages(messages))
        except httpx.HTTPError as error:
            raise ExchangeError(f"the SuperLink did not take the requests: {error}") from error
        return {identity: site for identity, site in zip(identities, addressed, strict=True) if identity}

    def _replies(self, waiting: dict[str, str], deadline: Deadline, limit: int) -> Iterator[SiteReply]:
        arriving: list[_Arriving] = []
        start = time.monotonic()
        try:
            while (waiting or arriving) and deadline.remaining > 0:
                arriving += self._announced(waiting)
                for reply in list(arriving):
                    body = self._complete(reply, limit, deadline)
                    if body is None:
                        continue
                    arriving.remove(reply)
                    if body:
                        deadline.replied()
                        yield SiteReply(site=reply.site, message=body)
                self._pause(start, deadline, still=bool(waiting or arriving))
            for site in [*waiting.values(), *(reply.site for reply in arriving)]:
                log.warning("%s had not answered at the deadline", site)
        finally:
            self._abandoned += waiting

    def _announced(self, waiting: dict[str, str]) -> list[_Arriving]:
        """Ask which replies are there. Errors (a node gone, an agent unreachable) end the waiting for a site."""
        if not waiting:
            return []
        answer = self._call("PullMessages", PullAppMessagesRequest(message_ids=list(waiting)))
        announced = []
        for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            site = waiting.pop(message.metadata.reply_to_message_id, None)
            if site is None:
                continue
            parts = [part.object_id for part in iterate_object_tree(tree)]
            if message.HasField("error") or len(parts) > MAX_PARTS:
                if site:
                    log.warning("%s did not answer: %.200r", site, message.error.reason or "too many parts")
                self._confirm(message.metadata.message_id)
                continue
            announced.append(_Arriving(site, message.metadata.message_id, list(dict.fromkeys(parts))))
        return announced

    def _complete(self, reply: _Arriving, limit: int, deadline: Deadline) -> bytes | None:
        """Take the parts that are there. Returns the body, empty where it is refused, or None: not yet whole."""
        while reply.missing and deadline.remaining > 0:
            request = PullObjectRequest(node=self._grid.node, object_id=reply.missing[-1])
            answer = self._call("PullObject", request)
            if answer.object_found and not answer.object_available:
                return None
            reply.num_bytes += len(answer.object_content)
            if not answer.object_found or reply.num_bytes > limit:
                log.warning("the reply of %s is dropped: a part is missing, or it is too long", reply.site)
                self._confirm(reply.message_id)
                return b""
            reply.parts[reply.missing.pop()] = answer.object_content
        if reply.missing:
            return None
        self._confirm(reply.message_id)
        try:
            return body_of(reply.parts, limit)
        except ReplyRefused as error:
            log.warning("the reply of %s is dropped: %s", reply.site, error)
            return b""

    def _confirm(self, message_id: str) -> None:
        """Let the SuperLink delete the message and its parts."""
        self._call(
            "ConfirmMessageReceived",
            ConfirmMessageReceivedRequest(node=self._grid.node, message_object_id=message_id),
        )

    def _forget_abandoned(self) -> None:
        """Ask once more for what was never answered: expired by now, the SuperLink deletes it."""
        if self._abandoned:
            self._announced(dict.fromkeys(self._abandoned, ""))
            self._abandoned.clear()

    def _call(self, name: str, request: Any) -> Any:
        if hasattr(request, "run_id"):
            request.run_id = self._grid.run.run_id
        try:
            return getattr(self._grid._runtime_client, name)(request)
        except httpx.HTTPError as error:
            raise ExchangeError(f"the SuperLink failed at {name}: {error}") from error

    @staticmethod
    def _pause(start: float, deadline: Deadline, *, still: bool) -> None:
        """Short at first, longer while sites train: about a fiftieth of the time waited."""
        now = time.monotonic()
        pause = min(LONGEST_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, (now - start) / 50), deadline.remaining)
        if still and pause > 0:
            time.sleep(pause)


def body_of(parts: Mapping[str, bytes], limit: int) -> bytes:
    """Put a reply's bytes together from its parts.

    Args:
        parts: content by object id, of the message and all that it holds.
        limit: largest body in bytes; the short description of an array could otherwise ask for a huge one.

    Raises:
        ReplyRefused: not exactly one record as a forwarder writes it, or one that is longer than *limit*.
    """
    try:
        kinds = [(get_object_head_values_from_object_content(content), content) for content in parts.values()]
        carriers = [(head, content) for head, content in kinds if head[0] in ("Array", "ConfigRecord")]
        if len(carriers) != 1:
            raise ReplyRefused("not one record")
        (kind, children, _), content = carriers[0]
        if kind == "ConfigRecord":
            body = ConfigRecord.inflate(content)[BODY]
            if not isinstance(body, bytes):
                raise ReplyRefused("not bytes")
            return body
        if len(content) > MAX_HEADER_PART_BYTES:
            raise ReplyRefused("an array in too many chunks")
        order = json.loads(get_object_body(content, Array))["arraychunk_ids"]
        chunks = {child: _chunk(parts[child]) for child in children}
        pieces = [chunks[children[index]] for index in order]
    except (ValueError, KeyError, IndexError, TypeError, DecodeError, RecursionError) as error:
        if isinstance(error, ReplyRefused):
            raise
        raise ReplyRefused("not in the form of a forwarder") from error
    if sum(map(len, pieces)) > limit:
        raise ReplyRefused("longer than allowed")
    return b"".join(pieces)


def _chunk(content: bytes) -> memoryview:
    """The data of an array chunk, without copying it."""
    kind, _, length = get_object_head_values_from_object_content(content)
    if kind != "ArrayChunk":
        raise ReplyRefused("an array of something else than chunks")
    return memoryview(content)[len(content) - length :]


def _record(body: bytes) -> ArrayRecord | ConfigRecord:
    """The one record that carries a request.

    A large body goes as an array, which Flower cuts into chunks of 5 MB; a smaller one whole, which saves two of
    five calls at each hop. Either adds less than 2 kB.
    """
    if len(body) <= WHOLE_BYTES:
        return ConfigRecord({BODY: body})
    return ArrayRecord({BODY: Array(dtype="uint8", shape=(len(body),), stype="bytes", data=body)})
