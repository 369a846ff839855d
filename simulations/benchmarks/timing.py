"""Seconds of several variants, measured in turn (A B A B …), so that a slow minute of the machine meets all."""

import gc
import time
from collections.abc import Callable, Mapping

Samples = dict[str, tuple[float, ...]]


def interleaved(variants: Mapping[str, Callable[[], object]], *, repetitions: int, calls: int = 1) -> Samples:
    """Return the seconds of one call, for each variant and repetition.

    Each variant is called once before, unmeasured. Garbage is collected before each measurement, not in it.

    Args:
        variants: what is called, by name.
        repetitions: samples of each variant.
        calls: how often in a row for one sample, whose seconds are divided by it.
    """
    for work in variants.values():
        work()
    samples: dict[str, list[float]] = {name: [] for name in variants}
    gc.collect()
    gc.freeze()  # so that each collection looks only at what the work itself has left
    try:
        for _ in range(repetitions):
            for name, work in variants.items():
                samples[name].append(_seconds(work, calls) / calls)
    finally:
        gc.unfreeze()
    return {name: tuple(values) for name, values in samples.items()}


def converted(samples: Samples, convert: Callable[[float], float]) -> Samples:
    """Return the samples in another unit."""
    return {name: tuple(map(convert, values)) for name, values in samples.items()}


def _seconds(work: Callable[[], object], calls: int) -> float:
    gc.collect()
    gc.disable()
    try:
        begun = time.perf_counter()
        for _ in range(calls):
            work()
        return time.perf_counter() - begun
    finally:
        gc.enable()
