"""The forwarder: takes messages from the SuperNode and passes their bytes to the agent, and the replies back.

It replaces Flower's ``flwr-clientapp``, which would install the delivered bundle and run it. The forwarder
never installs, reads or imports a bundle: nothing that the server sends is ever executed at a hospital. It has
no data, no keys of the site and no model.

It lives long, which also makes an exchange fast: no process and no imports for each message.

Everything of Flower's inner workings that a site depends on is named here and in `client.supernode`; a test
checks each signature against the installed version.
"""

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from client.agent_channel import AgentClient, AgentFailed, AgentUnreachable
from shared_models.processes import follow_parent

TASK_TYPE = "flwr-clientapp"
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
BODY = "body"
WHOLE_BYTES = 5 << 20
BUSY_PAUSE_SECONDS = 0.05
IDLE_PAUSE_SECONDS = 0.3
BUSY_SECONDS = 30.0
HEARTBEAT_SECONDS = 10.0
AGENT_PAUSE_SECONDS = 0.5
PART_PAUSE_SECONDS = 0.03
NEWER_TASK_SECONDS = 1.0
STALLED_SECONDS = 120.0

log = logging.getLogger("collegium.forwarder")


class TaskLost(RuntimeError):
    """A task that cannot be brought to its end; the SuperNode notices when its heartbeats stop."""


class TaskSuperseded(RuntimeError):
    """A newer task is there while the parts of this one's message are waited for: this one is dead.

    A SuperNode hands over one message after the other. When its run ends while a message is being pulled, Flower
    leaves the task behind, and the parts never come.
    """

    def __init__(self, token: str) -> None:
        super().__init__("the SuperNode went on to a newer message")
        self.token = token


class Forwarder:
    """Passes messages between one SuperNode and one agent.

    Args:
        supernode: ``host:port`` of the SuperNode's Runtime interface, on loopback.
        secret: the SuperExec secret that the launcher gave to both.
        agent: connection to the agent.
    """

    def __init__(self, supernode: str, secret: bytes, agent: AgentClient) -> None:
        self._address = supernode
        self._agent = agent
        self._tasks = self._client(
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE})
        )

    def run(self) -> None:
        """Take tasks until the process is ended."""
        last = time.monotonic()
        while True:
            try:
                token = self._newest()
                while token is not None:
                    token = self._task(token)
                    last = time.monotonic()
            except httpx.HTTPError as error:
                log.warning("the SuperNode does not answer: %s", error)
                time.sleep(1.0)
            busy = time.monotonic() - last < BUSY_SECONDS
            time.sleep(BUSY_PAUSE_SECONDS if busy else IDLE_PAUSE_SECONDS)

    def _newest(self) -> str | None:
        """The token of a task that waits to be taken, if there is one."""
        answer = self._tasks.AcquireTask(AcquireTaskRequest(supported_task_types=[TASK_TYPE]))
        return str(answer.token) if answer.HasField("task") else None

    def _task(self, token: str) -> str | None:
        """Do one task: one message in, one reply out. Returns the token of a newer one that took its place."""
        client = self._client(RuntimeTokenHttpInterceptor(token))
        ended = threading.Event()
        beat = threading.Thread(target=_heartbeats, args=(client, ended), name="task-heartbeat", daemon=True)
        beat.start()
        try:
            message = _take(client, self._newest)
            reply = self._reply(message)
            _give(client, reply)
            client.PushTaskOutput(PushTaskOutputRequest(sub_status="completed"))
        except TaskSuperseded as error:
            log.warning("a message was lost: %s", error)
            return error.token
        except (TaskLost, httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            # Without a reply the SuperNode waits until the task's heartbeats are missed, then tells the server.
            log.warning("a message was lost: %s", error)
        finally:
            ended.set()
            beat.join()
            client.close()
        return None

    def _reply(self, message: Message) -> Message:
        """Have the agent answer; try again while it is down, as long as the message lives."""
        metadata = message.metadata
        deadline = metadata.created_at + metadata.ttl
        try:
            body = _body(message)
        except (KeyError, TypeError, ValueError):
            log.warning("message %s is not a request of Collegium; refused", metadata.message_id[:12])
            return Message(Error(ErrorCode.UNKNOWN, "not a request of Collegium"), reply_to=message)
        log.info(
            "message %s, %d bytes, %.0f s to live",
            metadata.message_id[:12],
            len(body),
            deadline - time.time(),
        )
        waiting = False
        while (left := deadline - time.time()) > 0:
            try:
                answer = self._agent.handle(body, timeout_seconds=left)
            except AgentUnreachable:
                if not waiting:
                    log.warning("the agent does not answer; trying again until the message expires")
                waiting = True
                time.sleep(min(AGENT_PAUSE_SECONDS, left))
                continue
            except TimeoutError:
                break
            except AgentFailed as error:
                log.error("the agent failed: %s", error)  # noqa: TRY400 - its traceback is in the agent's log
                return Message(Error(ErrorCode.UNKNOWN, "the agent failed"), reply_to=message)
            log.info("message %s answered with %d bytes", metadata.message_id[:12], len(answer))
            return Message(RecordDict({BODY: _record(answer)}), reply_to=message)
        log.warning("message %s expired before the agent had answered", metadata.message_id[:12])
        return Message(Error(ErrorCode.UNKNOWN, "expired"), reply_to=message)

    def _client(self, interceptor: Any) -> Any:
        version = RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
        return RuntimeHttpClient.from_server_address(self._address, True, None, [version, interceptor])


def _body(message: Message) -> bytes:
    """The bytes that a request carries. Raises KeyError, TypeError or ValueError where there are none."""
    record = message.content[BODY]
    body = record[BODY].data if isinstance(record, ArrayRecord) else record[BODY]
    if not isinstance(body, bytes):
        raise TypeError("the body is not bytes")
    return body


def _record(body: bytes) -> ArrayRecord | ConfigRecord:
    """The one record that carries a reply: small ones whole, large ones cut into chunks by Flower."""
    if len(body) <= WHOLE_BYTES:
        return ConfigRecord({BODY: body})
    return ArrayRecord({BODY: Array(dtype="uint8", shape=(len(body),), stype="bytes", data=body)})


class _Patience:
    """Waiting for a SuperNode, with an end: no progress for long, or a newer task."""

    def __init__(self, newest: Callable[[], str | None]) -> None:
        self._newest = newest
        self._progress = self._looked = time.monotonic()

    def progress(self) -> None:
        """Something arrived."""
        self._progress = time.monotonic()

    def wait(self) -> None:
        """Wait a moment. Raises TaskSuperseded or TaskLost when it makes no sense any more."""
        time.sleep(PART_PAUSE_SECONDS)
        now = time.monotonic()
        if now - self._looked > NEWER_TASK_SECONDS:
            self._looked = now
            if (token := self._newest()) is not None:
                raise TaskSuperseded(token)
        if now - self._progress > STALLED_SECONDS:
            raise TaskLost(f"no part of the message came for {STALLED_SECONDS:.0f} s")


def _take(client: Any, newest: Callable[[], str | None]) -> Message:
    """Pull the task's message. The bundle that comes with the task's input is dropped unread.

    A SuperNode announces the task before it has the message, and the message before it has all of its parts.
    """
    taken = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id = taken.task_id
    TaskIdentity.run_id = taken.run.run_id
    TaskIdentity.node_id = taken.context.node_id
    node = Node(node_id=taken.context.node_id)
    patience = _Patience(newest)
    while not (trees := client.PullMessages(PullAppMessagesRequest()).message_object_trees):
        patience.wait()
    identity = trees[0].object_id
    contents: dict[str, bytes] = {}
    for part in iterate_object_tree(trees[0]):
        request = PullObjectRequest(node=node, run_id=taken.run.run_id, object_id=part.object_id)
        while part.object_id not in contents:
            answer = client.PullObject(request)
            if not answer.object_found:
                raise TaskLost("the SuperNode gave the message up")
            if answer.object_available:
                contents[part.object_id] = answer.object_content
                patience.progress()
            else:
                patience.wait()
    client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(node=node, run_id=taken.run.run_id, message_object_id=identity)
    )
    message = inflate_object_from_contents(identity, contents)
    if not isinstance(message, Message):
        raise TaskLost(f"the SuperNode delivered a {type(message).__name__}, not a message")
    message.metadata.__dict__["_message_id"] = identity
    return message


def _give(client: Any, reply: Message) -> None:
    """Push the reply and its parts."""
    node = Node(node_id=TaskIdentity.node_id)
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        pushed = client.PushMessages(
            PushAppMessagesRequest(
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
            )
        )
        wanted = set(pushed.objects_to_push)
        for object_id, part in get_all_nested_objects(reply).items():
            if object_id in wanted:
                client.PushObject(
                    PushObjectRequest(
                        node=node,
                        run_id=TaskIdentity.run_id,
                        object_id=object_id,
                        object_content=part.deflate(),
                        session_id=pushed.session_id,
                    )
                )


def _heartbeats(client: Any, ended: threading.Event) -> None:
    """Tell the SuperNode that the task lives; training may take hours."""
    while not ended.wait(HEARTBEAT_SECONDS):
        try:
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPError as error:
            log.warning("no heartbeat: %s", error)


def main() -> None:
    """Run as the site's child process."""
    follow_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    parser = argparse.ArgumentParser(description="passes messages between a SuperNode and a Collegium agent")
    parser.add_argument("--supernode", required=True)
    parser.add_argument("--secret", required=True, type=Path)
    parser.add_argument("--agent", required=True, type=Path)
    given = parser.parse_args()
    Forwarder(given.supernode, given.secret.read_bytes(), AgentClient(given.agent)).run()


if __name__ == "__main__":
    main()
