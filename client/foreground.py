"""Commands that go on until somebody ends them: by Ctrl-C, by SIGTERM, or by ending what started them."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from shared_models.processes import follow_parent, signals_end

INTERRUPTED = 130
PARENT_SECONDS = 40.0

err = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def foreground(end_with_parent: bool) -> Iterator[None]:
    """Say so and exit with 130 when the body is ended, by a signal or, if wanted, with the parent's standard input."""
    if end_with_parent:
        follow_parent(PARENT_SECONDS)
    try:
        with signals_end():
            yield
    except KeyboardInterrupt:
        err.print("Stopped.")
        raise typer.Exit(INTERRUPTED) from None
