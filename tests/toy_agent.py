"""A site agent with a toy handler: echoes, sleeps or counts, as the message says. Run as a process of its own."""

import argparse
import time
from pathlib import Path

from client.agent import serve
from client.site_file import read_site
from shared_models.processes import follow_parent


class Toy:
    """Implements `client.handler.Handler`: ``sleep SECONDS``, ``big BYTES``, or an echo with the site's name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0

    def handle(self, message: bytes) -> bytes:
        self._count += 1
        word, _, rest = message.partition(b" ")
        if word == b"sleep":
            slow, seconds, *_ = rest.split(b" ", 2)
            if slow.decode() == self._name:
                time.sleep(float(seconds))
            return b"slept " + self._name.encode()
        if word == b"big":
            return bytes(int(rest))
        if word == b"length":
            return str(len(message)).encode()
        if word == b"mirror":
            return message
        return self._name.encode() + b": " + message

    def status(self) -> dict[str, str]:
        return {"handled": str(self._count)}


if __name__ == "__main__":
    follow_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True, type=Path)
    site = read_site(parser.parse_args().config)
    raise SystemExit(serve(Toy(site.name), site))
