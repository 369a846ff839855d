"""The patients of one role as tensors, ready to be sampled and trained on."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.demographics import Demographics
from client.dicom_index import Index, IndexedImage
from client.roles import Role
from client.stored_images import Images, StoredImages, selected
from shared_models.study import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatientSet:
    """The images of all patients of one role; the images of one patient lie side by side.

    Args:
        pseudonyms: of each patient, increasing.
        images: float32, shape (num_images, channels, rows, columns), or (num_images, 1, depth, rows, columns) of
            volumes, in [0, 1]: a tensor, or where they are stored. Both give a tensor for a slice or for positions.
        labels: int64, shape (num_images,), or (num_images, num_findings) where a label has several values; those that
            are not known are `shared_models.tasks.task.MISSING`.
        masks: float32, shape (num_images, 1, ...), class numbers, where masks are what is learnt: ``labels`` then say
            which structures each of them has.
        first_image: int64, shape (num_patients + 1,); the images of patient p are first_image[p] to
            first_image[p + 1] - 1, at least one.
        features: float32, shape (num_images, num_features), where they are known and training does not change them.
        groups: int64, shape (num_patients, num_attributes): which group of each attribute a patient is in, where the
            study names any.
    """

    pseudonyms: tuple[str, ...] = field(repr=False)
    images: Images = field(repr=False)
    labels: Tensor = field(repr=False)
    first_image: NDArray[np.int64] = field(repr=False)
    features: Tensor | None = field(default=None, repr=False)
    masks: Images | None = field(default=None, repr=False)
    groups: NDArray[np.int64] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Return the number of patients."""
        return len(self.pseudonyms)

    def without(self, pseudonyms: Collection[str]) -> "PatientSet":
        """The same without these patients."""
        stay = [number for number, name in enumerate(self.pseudonyms) if name not in pseudonyms]
        if len(stay) == len(self):
            return self
        images = [position for number in stay for position in self.images_of(number)]
        sizes = [len(self.images_of(number)) for number in stay]
        return PatientSet(
            pseudonyms=tuple(self.pseudonyms[number] for number in stay),
            images=selected(self.images, images),
            labels=self.labels[images],
            first_image=np.cumsum([0, *sizes], dtype=np.int64),
            features=None if self.features is None else self.features[images],
            masks=None if self.masks is None else selected(self.masks, images),
            groups=None if self.groups is None else self.groups[stay],
        )

    def seen_as(self, features: Tensor) -> "PatientSet":
        """The same with *features*, of which training sees these instead of the images."""
        return replace(self, features=features)

    @property
    def inputs(self) -> Images:
        """What training sees of each image: its features, or itself."""
        return self.images if self.features is None else self.features

    @property
    def targets(self) -> Images:
        """What training wants of each image: its mask, or its label."""
        return self.labels if self.masks is None else self.masks

    def images_of(self, patient: int) -> range:
        """Return the positions of the images of the patient at position *patient*."""
        if not 0 <= patient < len(self):
            raise ValueError(f"patient is {patient}; must lie in 0..{len(self) - 1}")
        return range(int(self.first_image[patient]), int(self.first_image[patient + 1]))


def gather_patients(
    index: Index, stored: Callable[[Sequence[str]], StoredImages], evaluation: Evaluation | None = None
) -> dict[Role, PatientSet]:
    """Put images together by role and patient; they stay where they are.

    Args:
        index: the finished index.
        stored: gives the images with these paths in the index, in their order.
        evaluation: names the groups that patients are put into; None for no groups.

    Returns:
        One `PatientSet` for each role, possibly of no patients.
    """
    findings = [len(index.task.finding_names)] if index.task.finding_names else []
    sets = {
        role: _gather(entries, stored, findings, evaluation)
        for role, entries in images_by_role(index).items()
    }
    return {role: _with_masks(one) for role, one in sets.items()} if index.task.mask_values else sets


def _with_masks(stored: PatientSet) -> PatientSet:
    """The last channel of what is stored is the mask of the others."""
    if not isinstance(stored.images, StoredImages):
        raise TypeError("images of a hospital are stored")
    channels = stored.images.shape[1] - 1
    return replace(
        stored,
        images=stored.images.with_channels(0, channels),
        masks=stored.images.with_channels(channels, 1),
    )


def images_by_role(index: Index) -> dict[Role, list[IndexedImage]]:
    """The images of each role, in the order in which its `PatientSet` has them."""
    by_role: dict[Role, list[IndexedImage]] = {role: [] for role in Role}
    for entry in sorted(index.images, key=lambda entry: (entry.patient, entry.path)):
        by_role[entry.role].append(entry)
    return by_role


def _gather(
    entries: Sequence[IndexedImage],
    stored: Callable[[Sequence[str]], StoredImages],
    findings: Sequence[int],
    evaluation: Evaluation | None,
) -> PatientSet:
    owned = {patient: list(group) for patient, group in groupby(entries, key=lambda entry: entry.patient)}
    sizes: Mapping[str, int] = {patient: len(own) for patient, own in owned.items()}
    groups = None
    if evaluation is not None and evaluation.subgroups:
        places = [
            Demographics.of_patient([entry.demographics for entry in own]).places(evaluation)
            for own in owned.values()
        ]
        groups = np.array(places, dtype=np.int64).reshape(-1, len(evaluation.subgroups))
    return PatientSet(
        pseudonyms=tuple(sizes),
        images=stored([entry.path for entry in entries]),
        labels=torch.tensor([entry.label for entry in entries], dtype=torch.int64).view(-1, *findings),
        first_image=np.cumsum([0, *sizes.values()], dtype=np.int64),
        groups=groups,
    )
