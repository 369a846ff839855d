"""Jobs shared out to several processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.context import ForkServerContext
from typing import TypeVar

import torch

_IMPORTED_ONCE = ["client.site"]
"""Of what workers do, nearly all hangs on it."""

Job = TypeVar("Job")
Done = TypeVar("Done")


def in_processes(
    function: Callable[[Job], Done],
    jobs: Iterable[Job],
    *,
    num_workers: int,
    begin: Callable[[], None] | None = None,
) -> Iterator[tuple[Job, Done]]:
    """Yield each job with what *function* returns for it, in the order in which they are done.

    Where one fails, or the caller stops, the others are ended. Workers compute with one thread, leave Ctrl-C to this
    process and end with it, however it ends.

    Args:
        function: of a module.
        jobs: what can be sent to a process.
        num_workers: how many processes share the work.
        begin: called once in each process; a function of a module.
    """
    with ProcessPoolExecutor(
        num_workers, mp_context=worker_context(), initializer=_begin, initargs=(begin,)
    ) as workers:
        pending = {workers.submit(function, job): job for job in jobs}
        try:
            for done in as_completed(pending):
                yield pending[done], done.result()
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            for process in list(multiprocessing.active_children()):
                process.terminate()
            raise


def worker_context() -> ForkServerContext:
    """What starts worker processes: copies of one small process that has our imports done and has begun nothing.

    They start at once, and share the memory of the imports. What this process has in memory, threads and devices
    among it, they do not see.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED_ONCE)
    return context


def _begin(begin: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    if begin is not None:
        begin()


def _end_with_parent() -> None:
    """A killed parent says nothing to its workers, and their queue stays open: they hold it for each other."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
