"""Several processes that read files, and their results in the order of the files."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from client.file_reading import Header, Prepared
from client.structures import MaskWanted
from shared_models.study import Image

Job = TypeVar("Job")
Result = TypeVar("Result")


class Reader(Protocol):
    """What reads one file after the other: `client.decoding.DecodingWorker`, whose methods these are."""

    def header(self, path: Path, image: Image) -> Header:
        """Read the header of one file."""
        ...

    def digest(self, path: Path, image: Image) -> bytes:
        """Return SHA-256 of the file's bytes."""
        ...

    def drawn_on(self, path: Path) -> tuple[str, ...]:
        """The numbers of the images that a DICOM SEG was drawn on; none of others."""
        ...

    def prepare(self, path: Path, image: Image, mask: MaskWanted | None = None) -> Prepared:
        """Read, decode and prepare one file, and its mask."""
        ...

    def prepare_series(self, paths: Sequence[Path], image: Image, mask: MaskWanted | None = None) -> Prepared:
        """Read, decode and prepare all files of one series, and its mask."""
        ...

    def interrupt(self) -> None:
        """Stop what it does, from another thread."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class ReadingPool:
    """So many threads, each with a reader of its own, which it makes for its first file."""

    def __init__(self, make_reader: Callable[[], Reader], num_readers: int, *, ahead: int) -> None:
        self._make_reader = make_reader
        self._ahead = max(ahead, num_readers)
        self._threads = ThreadPoolExecutor(num_readers, thread_name_prefix="reader")
        self._own = threading.local()
        self._readers: list[Reader] = []
        self._stopped = False

    def submit(self, work: Callable[[Reader, Job], Result], job: Job) -> Future[Result]:
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
        for reader in self._readers:
            reader.interrupt()
        self._threads.shutdown(wait=True)
        for reader in self._readers:
            reader.close()

    def _do(self, work: Callable[[Reader, Job], Result], job: Job) -> Result:
        if self._stopped:
            raise RuntimeError("the pool was closed")
        reader: Reader | None = getattr(self._own, "reader", None)
        if reader is None:
            reader = self._own.reader = self._make_reader()
            self._readers.append(reader)
        return work(reader, job)


@contextmanager
def reading_pool(make_reader: Callable[[], Reader], num_readers: int, *, ahead: int) -> Iterator[ReadingPool]:
    """A pool that is closed at the end.

    Args:
        make_reader: called in each thread.
        num_readers: how many.
        ahead: how many files may be read before the first of them is asked for.
    """
    pool = ReadingPool(make_reader, num_readers, ahead=ahead)
    try:
        yield pool
    finally:
        pool.close()


def _is_pending(item: object) -> bool:
    return isinstance(item, Future) and not item.done()
