"""Launches Flower's SuperNode with short polling: ``python -m client.supernode ARGUMENTS OF flower-supernode``.

As shipped, a SuperNode sleeps three seconds between two looks for messages and half a second between two looks
for a reply, and waits a second or more for a part that is not there yet. A round of several exchanges would
mostly be sleep. The three constants are replaced in this one process, before Flower's own entry point runs.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from shared_models.processes import follow_parent

LOOK_SECONDS = 0.1
LONGEST_LOOK_SECONDS = 1.0
LOOK_GROWTH = 1.05
REPLY_SECONDS = 0.05
PART_SECONDS = 0.05
LONGEST_PART_SECONDS = 1.0


class ShortSleep:
    """Stands in for the module ``time`` inside Flower's SuperNode loop.

    Looking for a message: often right after some work, then ever more seldom up to once a second. Looking for
    the agent's reply, which costs a look into memory: often.

    Args:
        sleep: what really sleeps.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self._look = LOOK_SECONDS

    def sleep(self, seconds: float) -> None:
        """Sleep less than Flower asks for."""
        if seconds < 1.0:
            self._look = LOOK_SECONDS
            self._sleep(min(seconds, REPLY_SECONDS))
        else:
            self._sleep(self._look)
            self._look = min(self._look * LOOK_GROWTH, LONGEST_LOOK_SECONDS)


def shorten() -> None:
    """Replace the waiting times of the SuperNode in this process."""
    from flwr.supercore.inflatable import inflatable_utils
    from flwr.supernode import start_client_internal as _  # noqa: F401 - loads the module

    loop: Any = sys.modules["flwr.supernode.start_client_internal"]
    loop.time = ShortSleep()
    waits = {
        "initial_backoff": PART_SECONDS,
        "backoff_cap": LONGEST_PART_SECONDS,
        "max_tries_per_object": None,
    }
    defaults = inflatable_utils.pull_objects.__kwdefaults__
    if defaults is None or not waits.keys() <= defaults.keys():
        raise RuntimeError("this version of Flower pulls objects differently; see client/supernode.py")
    defaults.update(waits)


class _OfOneRun:
    """A SuperNode's state that hands out replies of one run only, and forgets those of others."""

    def __init__(self, state: Any, run_id: int) -> None:
        self._state, self._run_id = state, run_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_messages_legacy(self, *, is_reply: bool) -> list[Any]:
        """The replies that are there, without those to a run that is over."""
        messages = self._state.get_messages_legacy(is_reply=is_reply)
        stale = [message for message in messages if message.metadata.run_id != self._run_id]
        if stale:
            known = [(message.metadata.message_id, message.metadata.reply_to_message_id) for message in stale]
            self._state.delete_messages(message_ids=[name for pair in known for name in pair])
        return [message for message in messages if message.metadata.run_id == self._run_id]


def keep_in_step() -> None:
    """Let the SuperNode in this process send the reply to the message that it pulled last, and no older one.

    As shipped, it pulls one message, then sends whatever reply it finds first. A message that is being pulled when
    its run ends is forgotten, but the agent may have it and answer; that reply would then be taken for the one to
    the next run's first message, and every later reply would wait for one more message: the next run hangs.
    """
    from flwr.supernode import start_client_internal as _  # noqa: F401 - loads the module

    loop: Any = sys.modules["flwr.supernode.start_client_internal"]
    pull, push = loop._pull_and_store_message, loop._push_messages
    pulled: list[int | None] = [None]

    def pull_and_remember(**arguments: Any) -> int | None:
        pulled[0] = pull(**arguments)
        return pulled[0]

    def push_of_that_run(*, state: Any, **arguments: Any) -> None:
        push(state=state if pulled[0] is None else _OfOneRun(state, pulled[0]), **arguments)

    loop._pull_and_store_message, loop._push_messages = pull_and_remember, push_of_that_run


def main() -> None:
    """Run the SuperNode as the site's child process."""
    follow_parent()
    shorten()
    keep_in_step()
    from flwr.supernode.cli import flower_supernode

    sys.argv[0] = "flower-supernode"
    flower_supernode()


if __name__ == "__main__":
    main()
