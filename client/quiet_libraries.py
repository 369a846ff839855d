"""Libraries whose log lines quote what a PACS says: accession numbers, identifiers, whole addresses of queries."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def silence(*names: str) -> None:
    """Let nothing that these libraries log reach any handler, their child loggers included."""
    for name in names:
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.addFilter(lambda record: False)
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1)


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Drop warnings, and what ends a thread of pynetdicom: both may quote what the PACS sends. Loggers are silent."""
    told = threading.excepthook
    threading.excepthook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        threading.excepthook = told
