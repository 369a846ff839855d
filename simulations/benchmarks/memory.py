"""Peak memory of a piece of work, in three ways that each say what they count."""

import os
import re
import tracemalloc
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

Prepare = TypeVar("Prepare")
Found = TypeVar("Found")

_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets the peak resident set size to the current one


def traced_peak_mib(work: Callable[[], object]) -> float:
    """MiB that *work* had allocated at most through Python's allocators, NumPy's arrays included, torch's not."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def can_measure_resident() -> bool:
    """Whether the system lets a process reset its peak resident memory (Linux does)."""
    return os.access(_CLEAR_REFS, os.W_OK)


def resident_peak_mib(prepare: Callable[[], Callable[[], object]], *, module: str) -> float:
    """MiB by which the resident memory of a new process rose at most during the work.

    Args:
        prepare: called in the new process; what it returns is the work. Must be picklable.
        module: imported once, in the server process that the new processes are forked from.

    Source: proc(5), VmHWM and clear_refs.
    """
    return _in_new_process(_rise, prepare, module)


def resident_peaks_mib(prepare: Callable[[], Iterable[object]], *, module: str) -> list[float]:
    """MiB by which the resident memory of a new process rose at most, in each stretch of the work.

    Args:
        prepare: called in the new process; what it returns does the work while it is gone through, and gives something
            at the end of each stretch. Must be picklable.
        module: as of `resident_peak_mib`.
    """
    return _in_new_process(_rises, prepare, module)


def cuda_peak_mib(work: Callable[[], object], device: torch.device) -> float:
    """MiB by which torch's allocations on the CUDA *device* rose at most during the work.

    Not counted: what is allocated before, the CUDA context, and what torch's allocator keeps in store.
    """
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _in_new_process(measure: Callable[[Prepare], Found], prepare: Prepare, module: str) -> Found:
    context = get_context("forkserver")
    context.set_forkserver_preload([module])
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(measure, prepare).result()


def _rises(prepare: Callable[[], Iterable[object]]) -> list[float]:
    work, found = prepare(), list[float]()
    _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
    before = _status_kib("VmRSS")
    for _ in work:
        found.append((_status_kib("VmHWM") - before) / 1024)
        _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
    return found


def _rise(prepare: Callable[[], Callable[[], object]]) -> float:
    work = prepare()
    _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
    before = _status_kib("VmRSS")
    work()
    return (_status_kib("VmHWM") - before) / 1024


def _status_kib(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text("ascii"), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status holds no {name}")
    return int(found[1])
