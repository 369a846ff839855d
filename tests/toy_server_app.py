"""The server's part of a run whose job is told over a socket what to exchange. Run as a process of its own."""

import sys
import time
from multiprocessing.connection import Listener
from pathlib import Path

from server.exchange import Exchange
from server.server_app import play
from shared_models.processes import follow_parent
from shared_models.roster import Roster

KEY = b"toy"


def job(exchange: Exchange, roster: Roster, root: str, state: Path, run_id: str) -> None:
    """Answer commands until told to end: ("sites",), ("exchange", requests, timeout), ("fail", why), ("end",)."""
    with Listener(str(state / "toy"), family="AF_UNIX", authkey=KEY) as listener, listener.accept() as test:
        while True:
            command = test.recv()
            if command[0] == "sites":
                test.send(exchange.sites())
            elif command[0] == "exchange":
                start = time.monotonic()
                replies = []
                for reply in exchange.exchange(command[1], timeout_seconds=command[2]):
                    replies.append((reply.site, reply.message, time.monotonic() - start))
                test.send((replies, time.monotonic() - start))
            elif command[0] == "fail":
                raise RuntimeError(command[1])
            else:
                return


if __name__ == "__main__":
    follow_parent()
    sys.exit(play(job))
