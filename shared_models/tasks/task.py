"""What a task is: the two protocols that everything else knows it by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from shared_models.visible_text import visible

if TYPE_CHECKING:  # study.toml is read by commands that begin without torch
    from torch import Tensor

    from shared_models.tasks.curves import Pair
    from shared_models.tasks.fourfold import Fourfold
    from shared_models.tasks.overlap import Overlaps

Doubles: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]
Label: TypeAlias = int | tuple[int, ...]
"""Of one image: a value from 0 on, or one for each finding, where `MISSING` is one that is not known."""
Metrics: TypeAlias = Mapping[str, float | None]
"""By name. Those of one class or finding have its name behind a slash: ``auroc/melanoma``."""

MISSING = -1
"""In the place of a value that is not known. It has no part in the loss or in statistics."""


def _nameable(name: str) -> str:
    if name != visible(name) or name != name.strip() or "/" in name:
        raise ValueError("must be visible text without / and without spaces around it: it names metrics")
    return name


Name = Annotated[str, Field(min_length=1, max_length=60), AfterValidator(_nameable)]
"""Of a class or finding."""


def _zero_or_more_than_one(value: float) -> float:
    if value != 0.0 and not 1.0 <= value <= 10.0:
        raise ValueError("must be 0, which is cross-entropy, or lie in 1..10")
    return value


Focusing = Annotated[float, AfterValidator(_zero_or_more_than_one)]
"""Exponent of the focal loss (`shared_models.tasks.focal`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What a study says beside ``[task]`` that tasks rest on.

    Attributes:
        num_bins: bins of a histogram of scores over [0, 1], even, so that 0.5 is the edge of a bin.
        positive_weight: weight of a positive image in the training loss, for tasks that take it from there.
        noised: whether statistics get noise before they leave a site.
    """

    num_bins: int
    positive_weight: float
    noised: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """How the metrics of single classes or findings are shown.

    Attributes:
        word: what one of them is called.
        names: in the order of the study.
        columns: (metric, heading), shown for each.
        confusion: whether there are metrics ``confusion/TRUE/PREDICTED``.
    """

    word: Literal["class", "finding", "structure"]
    names: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    confusion: bool

    @property
    def plural(self) -> str:
        """Of the word."""
        return {"class": "classes", "finding": "findings", "structure": "structures"}[self.word]


class TaskTable(Protocol):
    """The table ``[task]`` of a study of one kind: which columns say what. All of it is public."""

    words: ClassVar[Mapping[str, str]]
    """What each key of the table means, for whoever is told of a change; those of a list of tables are dotted."""

    @property
    def kind(self) -> str:
        """As hospitals allow it in ``policy.allowed_tasks``."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the labels file: one, or one for each finding; none where masks are the labels."""
        ...

    @property
    def mask_values(self) -> tuple[tuple[int, ...], ...]:
        """Where masks are the labels: the values in them that mean each structure, and without any all above 0.

        Empty where the labels file holds the labels.
        """
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the values 0, 1, … of a label mean."""
        ...

    @property
    def finding_names(self) -> tuple[str, ...]:
        """Of the findings or structures, where a label has a value for each; empty where it is one value."""
        ...

    @property
    def takes_positive_weight(self) -> bool:
        """Whether ``training.positive_weight`` is the task's."""
        ...

    @property
    def in_words(self) -> str:
        """What the model learns, for those who decide at a hospital."""
        ...

    def value_of(self, cell: str, column: int) -> int | None:
        """Return what a cell of this column means; None where the study does not name it."""
        ...

    def task(self, constants: Constants) -> "Task":
        """Return the task with these constants."""
        ...


class Task(Protocol):
    """Loss, statistics that add up over patients and sites, and metrics from their sums.

    Every task has the metrics ``loss`` and ``num_patients``, and that of its first heading, the *headline*: ``auroc``
    of those that classify, which have ``accuracy`` and ``balanced_accuracy`` too, and ``dice`` of segmentation.
    """

    @property
    def num_bins(self) -> int:
        """Of each histogram of scores over [0, 1]."""
        ...

    @property
    def num_outputs(self) -> int:
        """Logits of an image, or of each of its points."""
        ...

    @property
    def dense(self) -> bool:
        """Whether there are logits of each point, and labels are masks."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """What each score of an image is the probability of."""
        ...

    @property
    def activation(self) -> Literal["sigmoid", "softmax"]:
        """What makes scores of logits."""
        ...

    @property
    def num_values(self) -> int:
        """Values that a label may have."""
        ...

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Of one image's label: () or (findings,)."""
        ...

    @property
    def num_histograms(self) -> int:
        """Histograms, or pairs of them, among the statistics; the headline is the mean over them."""
        ...

    @property
    def even_share(self) -> float:
        """Share of positives in each pair where all values are as frequent."""
        ...

    @property
    def headings(self) -> tuple[tuple[str, str], ...]:
        """(metric, heading) of what is shown of a model first."""
        ...

    @property
    def parts(self) -> Parts | None:
        """What is shown of its classes or findings; None where there are none."""
        ...

    @property
    def statistics_in_words(self) -> str:
        """What the statistics tell, for those who decide at a hospital."""
        ...

    def finely_binned(self) -> Self:
        """The same task with 2,000 bins, for exact figures where no noise has to fit into the bins."""
        ...

    def loss(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """Loss of each image by itself, shape (batch,): with constants of the study, and of no other image.

        Args:
            logits: float, shape (batch, num_outputs), or (batch, num_outputs, ...) where labels are masks.
            labels: float, shape (batch, *label_shape), or masks of shape (batch, 1, ...); `MISSING` has no part.
        """
        ...

    def scores(self, logits: "Tensor") -> "Tensor":
        """Probabilities in [0, 1]: logits (batch, num_outputs) → (batch,) or as *logits*."""
        ...

    def kept(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        """What is kept of each image to evaluate its patient, shape (batch,) or (batch, numbers).

        Args:
            logits: float, as of `loss`.
            labels: as of `loss`.
        """
        ...

    def by_patient(self, kept: Doubles, labels: Counts, first_image: Counts) -> tuple[Doubles, Counts]:
        """What is kept of each patient, and the patient's label, of the images'.

        Args:
            kept: of each image, float64, as `kept` made it.
            labels: of each image, int64, shape (num_images, *label_shape).
            first_image: int64, shape (num_patients + 1,), as of `client.patients.PatientSet`.
        """
        ...

    def among_bins(self, scores: Doubles) -> Doubles:
        """Where scores in [0, 1] lie among the bins of their histogram, in [0, 1]; larger ones lie further up."""
        ...

    @property
    def num_statistics(self) -> int:
        """How many numbers `statistics` gives."""
        ...

    @property
    def noise_units(self) -> Counts:
        """The unit of noise on each statistic, int64, shape (num_statistics,)."""
        ...

    @property
    def l2_sensitivity(self) -> float:
        """Most that one patient changes the statistics by, in L2 norm and in noise units."""
        ...

    def statistics(self, scores: Doubles, labels: Counts) -> Counts:
        """Sum over patients, int64, shape (num_statistics,).

        Args:
            scores: of each patient, float64, as `by_patient` made them; any values, also such as are not finite.
            labels: of each patient, int64, shape (num_patients, *label_shape).
        """
        ...

    def pairs(self, statistics: Counts) -> Mapping[str, "Pair"]:
        """The pairs of histograms of scores among the statistics, by the name of the output that they are about.

        Empty where marks are judged and not scores.
        """
        ...

    def decisions(self, statistics: Counts) -> Mapping[str, "Fourfold"]:
        """What the model's own decision takes patients for, for each of the same names."""
        ...

    def overlaps(self, statistics: Counts) -> Mapping[str, "Overlaps"]:
        """How well marks cover masks, by structure; empty where nothing is marked."""
        ...

    def metrics(self, statistics: Counts, *, cut: bool = True) -> Metrics:
        """Metrics from summed statistics; None where a class that a metric needs is empty.

        Noised counts are taken as they are, negative ones too. Only the metric itself is cut to its range, unless *cut*
        says no.
        """
        ...


def headline_of(task: Task) -> tuple[str, str]:
    """The metric that is told first of a model, and what it is called: ``auroc``, "mean AUROC"."""
    metric, heading = task.headings[0]
    word = heading.partition(",")[0]
    return metric, word if task.parts is None else f"mean {word}"


def compared_of(task: Task) -> tuple[tuple[str, str], ...]:
    """The two metrics by which models are compared where there is no room for all, and what they are called."""
    second = dict(task.headings).get("balanced_accuracy")
    return headline_of(task), task.headings[1] if second is None else ("balanced_accuracy", second)
