"""What the figures were measured on."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Hardware facts.

    Attributes:
        processor: the model's name.
        cores: that this process may use.
        memory_gib: of the whole machine.
        system: kernel and architecture.
        load_average: over the last minute, when the benchmark began: above 0.5 or so, others were at work.
    """

    processor: str
    cores: int
    memory_gib: float
    system: str
    load_average: float


def this_machine() -> Machine:
    """Look at the machine that this runs on."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        load_average=round(os.getloadavg()[0], 2),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
