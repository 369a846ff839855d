"""The local engine: sites in worker processes of this machine, behind the `Exchange` protocol."""

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from client.site import open_site
from client.site_file import SiteFile
from server.exchange import Deadline, ExchangeError, SiteReply
from simulations.workers import worker_context

log = logging.getLogger("collegium.simulation")

START_SECONDS = 120.0


@dataclass(slots=True, kw_only=True)
class _Worker:
    """One process and its sites; it works on one request at a time."""

    process: BaseProcess
    connection: Connection
    sites: tuple[str, ...]
    waiting: deque[tuple[str, bytes]] = field(default_factory=deque)
    working_on: tuple[int, str] | None = None


def shared_out(sites: Sequence[SiteFile], *, num_workers: int) -> tuple[tuple[SiteFile, ...], ...]:
    """Which sites share a worker: the one with most files first, each to the worker that has fewest.

    Source: Graham (1969), "Bounds on multiprocessing timing anomalies": no more than a third above the best.
    """
    burdens = {site.name: sum(len(names) for _, _, names in os.walk(site.images.folder)) for site in sites}
    shares: list[list[SiteFile]] = [[] for _ in range(num_workers)]
    for site in sorted(sites, key=lambda site: (-burdens[site.name], site.name)):
        min(shares, key=lambda share: (sum(burdens[other.name] for other in share), len(share))).append(site)
    return tuple(map(tuple, shares))


class LocalExchange:
    """Runs each site's `client.site.Site` in one of a few worker processes. Use as a context manager.

    Args:
        sites: the sites' configurations.
        num_workers: how many processes share them.
    """

    def __init__(self, sites: Sequence[SiteFile], *, num_workers: int) -> None:
        self._files = tuple(sites)
        self._num_workers = min(num_workers, len(self._files))
        self._workers: list[_Worker] = []
        self._forgetful: set[str] = set()
        self._ticket = 0

    def __enter__(self) -> "LocalExchange":
        context = worker_context()
        for files in shared_out(self._files, num_workers=self._num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, files), daemon=True)
            process.start()
            theirs.close()
            names = tuple(file.name for file in files)
            self._workers.append(_Worker(process=process, connection=ours, sites=names))
        for worker in self._workers:
            self._await_start(worker)
        return self

    def _await_start(self, worker: _Worker) -> None:
        try:
            if worker.connection.poll(START_SECONDS):
                failure = worker.connection.recv()
                if failure is None:
                    return
            else:
                failure = f"no answer within {START_SECONDS:g} s"
        except EOFError:
            failure = "the process ended"
        self.close()
        raise ExchangeError(f"a worker for {', '.join(worker.sites)} did not start: {failure}")

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all worker processes."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(timeout=0.2 if worker.working_on else 5.0)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join(timeout=5.0)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []

    def known_sites(self) -> tuple[str, ...]:
        """Names of all sites, sorted."""
        return tuple(sorted(file.name for file in self._files))

    def sites(self) -> tuple[str, ...]:
        """Names of the sites whose process lives, sorted."""
        living = [worker for worker in self._workers if worker.process.is_alive()]
        return tuple(sorted(site for worker in living for site in worker.sites))

    def restart(self, site: str) -> None:
        """Have the site begin anew with its next request: what it had in memory is lost, its files stay."""
        self._forgetful.add(site)

    def exchange(
        self,
        requests: Mapping[str, bytes],
        *,
        timeout_seconds: float,
        enough: int | None = None,
        grace_seconds: float = 0.0,
    ) -> Iterator[SiteReply]:
        """Send each site its request and yield each reply once, as it arrives."""
        self._ticket += 1
        ticket = self._ticket
        deadline = Deadline(
            time.monotonic, timeout_seconds=timeout_seconds, enough=enough, grace_seconds=grace_seconds
        )
        for worker in list(self._workers):
            worker.waiting = deque((site, requests[site]) for site in worker.sites if site in requests)
            self._dispatch(worker)
        try:
            while self._busy_with(ticket) and deadline.remaining > 0:
                busy = {worker.connection: worker for worker in self._workers if worker.working_on}
                for connection in wait(list(busy), timeout=deadline.remaining):
                    reply = self._receive(busy[connection], ticket)  # type: ignore[index]
                    if reply is not None:
                        deadline.replied()
                        yield reply
        finally:
            for worker in self._workers:
                worker.waiting.clear()

    def _busy_with(self, ticket: int) -> bool:
        return any(
            worker.waiting or (worker.working_on and worker.working_on[0] == ticket)
            for worker in self._workers
        )

    def _dispatch(self, worker: _Worker) -> None:
        """Hand over the next request, once the last one is answered: the pipe can never fill from both ends."""
        if worker.working_on is None and worker.waiting:
            site, message = worker.waiting.popleft()
            worker.working_on = (self._ticket, site)
            try:
                worker.connection.send((site, message, site in self._forgetful))
                self._forgetful.discard(site)
            except OSError:
                self._drop(worker)

    def _drop(self, worker: _Worker) -> None:
        """The process is gone, and its sites with it."""
        log.warning("the worker of %s ended", ", ".join(worker.sites))
        worker.connection.close()
        worker.process.join(timeout=1.0)
        self._workers = [other for other in self._workers if other is not worker]

    def _receive(self, worker: _Worker, ticket: int) -> SiteReply | None:
        """Take one reply off the pipe; None where it is late or the process is gone."""
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionError):
            self._drop(worker)
            return None
        begun, site = worker.working_on or (0, "")
        worker.working_on = None
        self._dispatch(worker)
        return SiteReply(site=site, message=message) if begun == ticket else None


def _serve(connection: Connection, files: tuple[SiteFile, ...]) -> None:
    """A worker's life: one request after the other, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", force=True)
    configured = {file.name: file for file in files}
    try:
        sites = {name: open_site(file) for name, file in configured.items()}
    except Exception as error:  # noqa: BLE001 - the parent tells it; a worker has nobody to tell
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    while True:
        try:
            site, message, anew = connection.recv()
            if anew:
                sites[site] = open_site(configured[site])
            connection.send(sites[site].handle(message))
        except (EOFError, ConnectionError):
            return
