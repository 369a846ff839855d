"""What holds for every test file."""

import gc
from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long an example takes says nothing on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="module")
def _litter_is_collected_where_it_was_left() -> Iterator[None]:
    """An object that a file leaves unclosed fails a test of that file, not one of whichever comes later."""
    yield
    gc.collect()
