"""What became of a call of ``collegium-client predict``, in numbers and on the terminal."""

from collections import Counter
from dataclasses import dataclass, field

from rich.table import Table

from client.prediction.reading import Reading, Unread
from client.reasons import Reason
from shared_models.visible_text import visible

MOST_SHOWN = 20
"""Readings, and inputs that were left out, that are listed on the terminal."""
BESIDE = (Reason.NOT_AN_IMAGE.code, Reason.DICOMDIR.code)
"""Files of which nobody expects a reading: reports, tables of contents."""

ALL, NOTHING, SOME_LEFT_OUT = 0, 1, 3


@dataclass(slots=True)
class Summary:
    """Counts, and the first few of each for whoever looks on.

    Attributes:
        num_read: readings.
        num_overridden: of them, those that would have been refused.
        left_out: inputs by the code of the reason.
        shown: the first readings.
        told: the first inputs that were left out.
        can_be_overridden: codes among them that ``--override`` takes.
    """

    num_read: int = 0
    num_overridden: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    shown: list[Reading] = field(default_factory=list)
    told: list[Unread] = field(default_factory=list)
    can_be_overridden: set[str] = field(default_factory=set)

    def add(self, found: Reading | Unread) -> None:
        """Take one."""
        if isinstance(found, Reading):
            self.num_read += 1
            self.num_overridden += bool(found.overrides)
            if len(self.shown) < MOST_SHOWN:
                self.shown.append(found)
            return
        self.left_out[found.code] += 1
        if found.can_be_overridden:
            self.can_be_overridden.add(found.code)
        if len(self.told) < MOST_SHOWN and found.code not in BESIDE:
            self.told.append(found)

    @property
    def exit_code(self) -> int:
        """0: all inputs were read. 1: none was. 3: some were left out; files that are no images do not count."""
        if not self.num_read:
            return NOTHING
        return SOME_LEFT_OUT if any(code not in BESIDE for code in self.left_out) else ALL

    def values(self) -> dict[str, object]:
        """For scripts."""
        return {
            "num_read": self.num_read,
            "num_overridden": self.num_overridden,
            "num_left_out": dict(self.left_out.most_common()),
        }


def readings_table(summary: Summary) -> Table | None:
    """The readings, where they are few enough to be looked at."""
    if not summary.num_read or summary.num_read > len(summary.shown):
        return None
    table = Table()
    table.add_column("input", overflow="fold")
    first = summary.shown[0]
    for name in first.probabilities:
        table.add_column(visible(name), justify="right")
    if first.points:
        table.add_column("from the threshold on")
    if summary.num_overridden:
        table.add_column("overridden")
    for reading in summary.shown:
        cells = [visible(reading.name)]
        for name, value in reading.probabilities.items():
            spread = reading.spreads.get(name)
            cells.append(f"{value:.3f}" + ("" if spread is None else f" ± {spread.deviation:.3f}"))
        if first.points:
            reached = [_point(reading, one.output, one.name) for one in reading.points if one.reached]
            cells.append(", ".join(reached) or "none")
        if summary.num_overridden:
            cells.append(", ".join(one.partition(":")[0] for one in reading.overrides))
        table.add_row(*cells)
    return table


def _point(reading: Reading, output: str, name: str) -> str:
    return visible(name if len(reading.probabilities) == 1 else f"{output}: {name}")
