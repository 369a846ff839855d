"""The site agent: the process that has the data, the model and the keys. It knows nothing of Flower.

It answers one request at a time, in the order of arrival; its status can be asked meanwhile. A request whose
sender has given up before it came to its turn is not begun. SIGTERM ends the agent: what runs gets a few
seconds, and anything durable is already on disk by the handler's own rules.
"""

import argparse
import json
import logging
import os
import resource
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import grpc

from client.agent_channel import DRAIN, HANDLE, OPTIONS, SERVICE, STATUS, socket_path
from client.handler import Handler
from client.site_file import SiteFile, read_site
from shared_models.processes import follow_parent

TURN_SECONDS = 0.2
STOP_SECONDS = 5.0
UNUSABLE = 4  # exit status: the site's own files are wrong; starting again does not mend them
DRAINED = 3  # exit status that tells the launcher not to start the agent again
MAX_CALLS = 8

log = logging.getLogger("collegium.agent")


class Agent:
    """Serves a `Handler` on a unix socket.

    Args:
        handler: what answers.
        path: the socket; its folder is made if needed, a stale socket is replaced.
    """

    def __init__(self, handler: Handler, path: Path) -> None:
        self._handler = handler
        self._turn = threading.Lock()
        self._draining = threading.Event()
        self._ended = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="call"), options=OPTIONS)
        methods = {
            HANDLE: grpc.unary_unary_rpc_method_handler(self._handle),
            STATUS: grpc.unary_unary_rpc_method_handler(self._status),
            DRAIN: grpc.unary_unary_rpc_method_handler(self._drain),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        _bind(self._server, path)
        self._path = path

    def run(self) -> int:
        """Serve until drained or stopped. Returns the process's exit status."""
        self._server.start()
        log.info("ready at %s", self._path)
        self._ended.wait()
        self._server.stop(STOP_SECONDS).wait()
        self._path.unlink(missing_ok=True)
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


def _bind(server: grpc.Server, path: Path) -> None:
    """Listen on the socket: 0660 in a folder 0750, never open to others even for a moment."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    path.parent.chmod(0o750)
    path.unlink(missing_ok=True)
    mask = os.umask(0o117)
    try:
        server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(mask)
    path.chmod(0o660)


def serve(handler: Handler, path: Path) -> int:
    """Serve *handler* on the socket at *path* until SIGTERM, SIGINT or a drain. Returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    agent = Agent(handler, path)

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
        handler = open_site(site)
    except SITE_ERRORS as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(UNUSABLE)
    status = serve(handler, socket_path(site.state))
    sys.stdout.flush()
    os._exit(status)  # a training that is still running in its thread does not hold the process


if __name__ == "__main__":
    main()
