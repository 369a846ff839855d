"""The site agent: the process that has the data, the model and the keys. It knows nothing of Flower.

It answers one request at a time, in the order of arrival; its status can be asked meanwhile. A request whose
sender has given up before it came to its turn is not begun. SIGTERM ends the agent: what runs gets a few
seconds, and anything durable is already on disk by the handler's own rules.

Requests come in through the door only, from one user; the agent opens no network connection of any kind.
"""

import argparse
import json
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import grpc

from client.agent_channel import CONTROL, DRAIN, HANDLE, INNER, OPTIONS, SERVICE, STATUS, socket_path
from client.door import Door
from client.door_place import DoorPlace, door_place
from client.handler import Handler
from client.site_file import SiteFile, read_site
from shared_models.processes import follow_parent, private_folder

TURN_SECONDS = 0.2
STOP_SECONDS = 5.0
FLUSH_SECONDS = 2.0
UNUSABLE = 4  # exit status: the site's own files are wrong; starting again does not mend them
DRAINED = 3  # exit status that tells the launcher not to start the agent again
MAX_CALLS = 8

log = logging.getLogger("collegium.agent")


class Agent:
    """Serves a `Handler` through a door, and tells its own user how it is.

    Two gRPC servers, so that what comes through the door finds ``Handle`` and nothing else.

    Args:
        handler: what answers.
        state: the site's state folder; inner and control socket lie below it, stale ones are replaced.
        door: where requests come in, and from whom.
    """

    def __init__(self, handler: Handler, state: Path, door: DoorPlace) -> None:
        self._handler = handler
        self._turn = threading.Lock()
        self._draining = threading.Event()
        self._ended = threading.Event()
        self._paths = socket_path(state, INNER), socket_path(state, CONTROL)
        self._requests = _server(self._paths[0], {HANDLE: self._handle})
        self._control = _server(self._paths[1], {STATUS: self._status, DRAIN: self._drain})
        self._door = Door(door, self._paths[0])

    def run(self) -> int:
        """Serve until drained or stopped. Returns the process's exit status.

        Raises:
            DoorError: the door cannot be opened.
        """
        self._requests.start()
        try:
            with self._door.opened(FLUSH_SECONDS):
                self._control.start()
                self._ended.wait()
                self._requests.stop(STOP_SECONDS).wait()
        finally:
            self._requests.stop(None)
            self._control.stop(STOP_SECONDS).wait()
            for path in self._paths:
                path.unlink(missing_ok=True)
        return DRAINED if self._draining.is_set() else 0

    def stop(self) -> None:
        """End `run` soon; what is being handled gets a few seconds."""
        self._ended.set()

    def _handle(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        while not self._turn.acquire(timeout=TURN_SECONDS):
            if not context.is_active():
                return b""  # nobody waits for it any more
        try:
            if self._draining.is_set() or self._ended.is_set():
                context.abort(grpc.StatusCode.UNAVAILABLE, "the agent is ending")
            if not context.is_active():
                return b""
            return self._handler.handle(message)
        finally:
            self._turn.release()
            if self._draining.is_set():
                self._ended.set()

    def _status(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        work = "working" if self._turn.locked() else "waiting"
        if self._draining.is_set():
            work += ", draining"
        return json.dumps({"agent": work, "pid": str(os.getpid()), **self._handler.status()}).encode()

    def _drain(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        log.info("draining: no new request is taken")
        self._draining.set()
        if not self._turn.locked():
            self._ended.set()
        return b""


def _server(path: Path, methods: Mapping[str, Callable[[bytes, grpc.ServicerContext], bytes]]) -> grpc.Server:
    """A server of these methods on a socket that only this user can reach, not even for a moment another."""
    server = grpc.server(
        ThreadPoolExecutor(MAX_CALLS, thread_name_prefix=path.name),
        options=OPTIONS,
        maximum_concurrent_rpcs=MAX_CALLS,
    )
    handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    private_folder(path.parent)
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(mask)
    return server


def serve(handler: Handler, site: SiteFile) -> int:
    """Serve *handler* as the site's agent until SIGTERM, SIGINT or a drain. Returns the exit status.

    Raises:
        DoorError: the door's folder or user is not as it has to be.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    agent = Agent(handler, site.state, door_place(site))

    def on_signal(number: int, frame: FrameType | None) -> None:
        agent.stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return agent.run()


def with_identity_key(site: SiteFile, path: Path | None) -> SiteFile:
    """The site with its identity key at *path*, where the launcher handed it over; None leaves it where it is."""
    if path is None:
        return site
    return site.model_copy(update={"consortium": site.consortium.model_copy(update={"identity_key": path})})


def main() -> None:
    """Run as the site's child process."""
    follow_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what is in memory only stays there in a crash
    parser = argparse.ArgumentParser(description="the agent of a Collegium site")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--identity-key", type=Path, help="where to read it in place of where site.toml says")
    given = parser.parse_args()
    from client.site import open_site
    from client.site_errors import SITE_ERRORS

    try:
        site = with_identity_key(read_site(given.config), given.identity_key)
        door_place(site)
        status = serve(open_site(site), site)
    except SITE_ERRORS as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(UNUSABLE)
    sys.stdout.flush()
    os._exit(status)  # a training that is still running in its thread does not hold the process


if __name__ == "__main__":
    main()
