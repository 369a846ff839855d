"""What decoding one file may take."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the process that decodes.

    Args:
        memory_bytes: of its address space, all in all.
        processor_seconds: of computing for one file. Not of the clock, so that a busy machine uses the same files as
            an idle one.
        clock_seconds: for one file, where a disk is slow or a decoder waits.
    """

    memory_bytes: int = 2 * 2**30
    processor_seconds: int = 10
    clock_seconds: int = 120
