"""What the rows of a labels file say of each key, and what is wrong with them.

What is not known, not there or contradictory is counted, never guessed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from client.reasons import LabelProblem, Reason
from shared_models.tasks.task import MISSING, Label, TaskTable


@dataclass(frozen=True, slots=True)
class _Kinds:
    """How problems of a cell are called: of the label, or of one finding of several."""

    empty: LabelProblem
    unknown: LabelProblem
    contradictory: LabelProblem


_OF_LABEL = _Kinds(LabelProblem.EMPTY_LABEL, LabelProblem.UNKNOWN_LABEL, LabelProblem.CONTRADICTORY)
_OF_FINDING = _Kinds(
    LabelProblem.EMPTY_FINDING, LabelProblem.UNKNOWN_FINDING, LabelProblem.CONTRADICTORY_FINDING
)
_GRAVEST = (Reason.LABEL_CONTRADICTORY, Reason.LABEL_UNKNOWN, Reason.LABEL_EMPTY)
"""Of the reasons why no finding is known, the one that is told."""


class Statements:
    """What the rows of each key say, column by column; and what is wrong with them."""

    def __init__(self, task: TaskTable) -> None:
        self._task = task
        self._kinds = _OF_FINDING if task.finding_names else _OF_LABEL
        self._by_key: dict[str, tuple[set[int | Reason], ...]] = {}
        self.problems: Counter[LabelProblem] = Counter()
        self._by_column: tuple[Counter[LabelProblem], ...] = tuple(Counter() for _ in task.columns)

    def add(self, key: str, cells: Sequence[str]) -> None:
        """Add what the label's cells of one row say to what earlier rows of its key said."""
        said = self._by_key.setdefault(key, tuple(set[int | Reason]() for _ in cells))
        stated = [(column, said[column], cell) for column, cell in enumerate(cells) if cell]
        for column in set(range(len(cells))) - {column for column, _, _ in stated}:
            self._by_column[column][self._kinds.empty] += 1
        news = [self._add(column, earlier, cell) for column, earlier, cell in stated]
        self.problems[LabelProblem.REPEATED] += bool(news) and not any(news)

    def _add(self, column: int, earlier: set[int | Reason], cell: str) -> bool:
        """Add what one cell says; return whether it is something else than *earlier* rows said."""
        value: int | Reason | None = self._task.value_of(cell, column)
        if value is None:
            value = Reason.LABEL_UNKNOWN
            self._by_column[column][self._kinds.unknown] += 1
        if value in earlier and len(earlier) == 1:
            return False
        if earlier:
            self._by_column[column][self._kinds.contradictory] += 1
        earlier.add(value)
        return True

    def resolved(self) -> tuple[dict[str, Label], dict[str, Reason]]:
        """The labels, and why other keys have none."""
        labels: dict[str, Label] = {}
        unusable: dict[str, Reason] = {}
        for key, columns in self._by_key.items():
            values = [_resolved(said) for said in columns]
            known = tuple(MISSING if isinstance(value, Reason) else value for value in values)
            if known and all(value == MISSING for value in known):
                unusable[key] = next(reason for reason in _GRAVEST if reason in values)
            else:
                labels[key] = known if self._task.finding_names else known[0]
        return labels, unusable

    def all_problems(self) -> dict[LabelProblem, int]:
        """Of rows and of all columns."""
        return dict(+sum(self._by_column, self.problems.copy()))

    def finding_problems(self) -> dict[str, dict[LabelProblem, int]]:
        """Of each finding that has any."""
        named = zip(self._task.finding_names, self._by_column, strict=False)
        return {name: dict(counted) for name, counted in named if counted}


def _resolved(said: set[int | Reason]) -> int | Reason:
    """What the rows of one key say together."""
    if not said:
        return Reason.LABEL_EMPTY
    return next(iter(said)) if len(said) == 1 else Reason.LABEL_CONTRADICTORY
