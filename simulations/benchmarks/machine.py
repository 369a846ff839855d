"""What the figures were measured on."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Hardware facts.

    Attributes:
        processor: the model's name.
        cores: that this process may use.
        memory_gib: of the whole machine.
        system: kernel and architecture.
        accelerator: name of torch's current CUDA device and the version of CUDA; None where there is none.
        load_average: over the last minute, when the benchmark began: above 0.5 or so, others were at work.
    """

    processor: str
    cores: int
    memory_gib: float
    system: str
    accelerator: str | None
    load_average: float


def this_machine() -> Machine:
    """Look at the machine that this runs on."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        accelerator=_accelerator(),
        load_average=round(os.getloadavg()[0], 2),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _accelerator() -> str | None:
    if not torch.cuda.is_available():
        return None
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
