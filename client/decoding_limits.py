"""What decoding one file, or one series, may take."""

from dataclasses import dataclass, replace
from typing import Self

from shared_models.study import Image


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

    @classmethod
    def of(cls, image: Image) -> Self:
        """The usual limits of a study: for volumes, whose slices are held together, twice the memory."""
        usual = cls()
        return usual if image.depth is None else replace(usual, memory_bytes=2 * usual.memory_bytes)

    def of_series(self, num_files: int) -> Self:
        """What one series may take: as some files and a little more for each, and never more than as 60 files."""
        processor, clock = self.processor_seconds, self.clock_seconds
        return replace(
            self,
            processor_seconds=min(60 * processor, 12 * processor + num_files),
            clock_seconds=min(15 * clock, 3 * clock + 2 * num_files),
        )
