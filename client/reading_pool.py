"""Several processes that read files, and their results in the order of the files."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from client.decoding import DecodingWorker

Job = TypeVar("Job")
Result = TypeVar("Result")


class ReadingPool:
    """So many threads, each with a process that reads for it and starts with its first file."""

    def __init__(self, num_readers: int, *, ahead: int) -> None:
        self._ahead = max(ahead, num_readers)
        self._threads = ThreadPoolExecutor(num_readers, thread_name_prefix="reader")
        self._own = threading.local()
        self._workers: list[DecodingWorker] = []
        self._stopped = False

    def submit(self, work: Callable[[DecodingWorker, Job], Result], job: Job) -> Future[Result]:
        """Do *work* in some thread, with its process."""
        return self._threads.submit(self._do, work, job)

    def in_order(self, started: Iterable[Future[Result] | Result]) -> Iterator[Result]:
        """Yield results in the order in which their work was submitted.

        Args:
            started: submits work when it is asked for more; gives a result itself where there is nothing to do. It is
                never further ahead than the pool's limit, counted in submitted work.
        """
        waiting: deque[Future[Result] | Result] = deque()
        submitted = 0
        for item in started:
            waiting.append(item)
            submitted += isinstance(item, Future)
            while waiting and (submitted >= self._ahead or not _is_pending(waiting[0])):
                first = waiting.popleft()
                submitted -= isinstance(first, Future)
                yield first.result() if isinstance(first, Future) else first
        for item in waiting:
            yield item.result() if isinstance(item, Future) else item

    def close(self) -> None:
        """End all processes, whatever they do."""
        self._stopped = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.interrupt()
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.close()

    def _do(self, work: Callable[[DecodingWorker, Job], Result], job: Job) -> Result:
        if self._stopped:
            raise RuntimeError("the pool was closed")
        worker: DecodingWorker | None = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = DecodingWorker()
            self._workers.append(worker)
        return work(worker, job)


@contextmanager
def reading_pool(num_readers: int, *, ahead: int) -> Iterator[ReadingPool]:
    """A pool that is closed at the end.

    Args:
        num_readers: processes; 0: as many as this process may use cores.
        ahead: how many files may be read before the first of them is asked for.
    """
    pool = ReadingPool(num_readers or len(os.sched_getaffinity(0)), ahead=ahead)
    try:
        yield pool
    finally:
        pool.close()


def _is_pending(item: object) -> bool:
    return isinstance(item, Future) and not item.done()
