"""A server that turned against its hospitals: asks every site once, in a run whose bundle holds code."""

import sys
import time
from pathlib import Path

from server.exchange import Exchange
from server.server_app import play
from shared_models.processes import follow_parent
from shared_models.roster import Roster


def job(exchange: Exchange, roster: Roster, root: str, state: Path, run_id: str) -> None:
    """Write the names of the sites that answered to ``STATE/replies``."""
    replies = exchange.exchange(dict.fromkeys(exchange.sites(), b"hello"), timeout_seconds=30.0)
    names = [reply.site for reply in replies]
    time.sleep(1.0)  # whatever would be executed has had its time
    (state / "replies").write_text(" ".join(names))


if __name__ == "__main__":
    follow_parent()
    sys.exit(play(job))
