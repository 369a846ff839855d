"""The kinds of tasks there are, and the task of a study."""

from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

from shared_models.tasks.binary import BinaryTable
from shared_models.tasks.multi_class import MultiClassTable
from shared_models.tasks.multi_label import MultiLabelTable
from shared_models.tasks.segmentation import SegmentationTable
from shared_models.tasks.task import Constants, Task, TaskTable

if TYPE_CHECKING:  # it holds one of the tables
    from shared_models.study import Study

AnyTable: TypeAlias = Annotated[
    BinaryTable | MultiClassTable | MultiLabelTable | SegmentationTable, Field(discriminator="kind")
]
"""The table ``[task]`` of a study, by its ``kind``."""

TABLES: tuple[type[TaskTable], ...] = (BinaryTable, MultiClassTable, MultiLabelTable, SegmentationTable)
"""The same, one by one."""


def task_of(study: "Study") -> Task:
    """The task that the study names, with its constants."""
    evaluation = study.evaluation
    return study.task.task(
        Constants(
            num_bins=evaluation.num_bins,
            positive_weight=study.training.positive_weight,
            noised=not evaluation.unnoised,
        )
    )
