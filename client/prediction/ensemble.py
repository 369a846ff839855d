"""One model, or several whose mean is taken: what they say of a batch of prepared images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.prediction.reading import Mask, Spread
from shared_models.model_file import ModelFileError, TrainedModel
from shared_models.tasks.segmentation import Segmentation

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What is said of one image.

    Attributes:
        probabilities: mean over models, float64, shape (outputs,); of segmentation the highest of each structure.
        spreads: of each output over the models; empty of one model.
        mask: uint8, of segmentation.
    """

    probabilities: Doubles
    spreads: tuple[Spread, ...] = ()
    mask: Mask | None = None


class Ensemble:
    """Models of one kind of image and question.

    Args:
        models: at least one. All must want the same preparation and have the same outputs.
        device: where they compute.

    Raises:
        ModelFileError: they differ.
    """

    def __init__(self, models: Sequence[TrainedModel], device: torch.device) -> None:
        if not models:
            raise ValueError("an ensemble needs a model")
        first = models[0]
        for other in models[1:]:
            _check_alike(first, other)
        self.models = tuple(models)
        self.task, self.image = first.task, first.image
        self._device = device
        self._networks = [one.model.to(device) for one in models]

    @property
    def names(self) -> tuple[str, ...]:
        """What each probability is of: the outputs; of segmentation the structures."""
        return self.task.names if isinstance(self.task, Segmentation) else tuple(self.task.output_names)

    def answers(self, planes: Sequence[npt.NDArray[np.float32]]) -> list[Answer]:
        """Return what the models say of each prepared image, each float32 of ``image.shape``."""
        batch = torch.from_numpy(np.stack(planes)).to(self._device)
        with torch.no_grad():
            logits = [network(batch) for network in self._networks]
            if isinstance(self.task, Segmentation):
                return self._marked(self.task, logits)
            scores = [self.task.scores(one.double()).cpu().numpy().reshape(len(planes), -1) for one in logits]
        return [
            Answer(probabilities=np.mean(own, axis=0), spreads=_spreads(own))
            for own in np.stack(scores, axis=1)
        ]

    def _marked(self, task: Segmentation, logits: Sequence[Tensor]) -> list[Answer]:
        """A point belongs to the structure of the highest mean probability; of one model as its evaluation says."""
        alone = len(task.names) == 1
        scores = [task.scores(one) for one in logits]
        mean = torch.stack(scores).mean(0)
        several = (mean[:, 0] > 0.5).long() if alone else mean.argmax(1)
        marks = task.marks(logits[0]) if len(logits) == 1 else several
        masks = marks.to(torch.uint8).cpu().numpy()
        first = 0 if alone else 1
        highest = [one[:, first:].flatten(2).amax(2).double().cpu().numpy() for one in (mean, *scores)]
        return [
            Answer(
                probabilities=highest[0][place],
                spreads=_spreads(np.stack([one[place] for one in highest[1:]])),
                mask=masks[place],
            )
            for place in range(len(masks))
        ]


def _spreads(own: Doubles) -> tuple[Spread, ...]:
    """Of one image: probabilities of shape (models, outputs)."""
    if len(own) == 1:
        return ()
    return tuple(
        Spread(deviation=float(column.std()), low=float(column.min()), high=float(column.max()))
        for column in own.T
    )


def _check_alike(first: TrainedModel, other: TrainedModel) -> None:
    study, its = first.study, other.study
    differences = [
        words
        for words, same in (
            ("other outputs", first.card.outputs == other.card.outputs and study.task.kind == its.task.kind),
            ("another preparation ([image])", study.image == its.image),
            ("other quality gates ([quality])", study.quality == its.quality),
        )
        if not same
    ]
    if differences:
        raise ModelFileError(
            f"{other.name}: cannot be asked together with {first.name}: it has {' and '.join(differences)}; ask it by "
            "itself"
        )
