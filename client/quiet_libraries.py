"""Libraries whose log lines quote what a PACS says: accession numbers, identifiers, whole addresses of queries."""

import logging


def silence(*names: str) -> None:
    """Let nothing that these libraries log reach any handler, their child loggers included."""
    for name in names:
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.addFilter(lambda record: False)
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1)
