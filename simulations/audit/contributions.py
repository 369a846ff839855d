"""What one patient contributes to a sum: at most the clipping bound, and nothing that depends on another patient."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from privacy.randomness import CryptographicGenerator
from shared_models.architectures import outline
from shared_models.manifest import Manifest
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from simulations.audit.findings import Finding, Findings, Keys
from simulations.audit.patients import NEGATIVE, SILENT, patient_set, random_images
from simulations.audit.release import Doubles, Release, clipping_bound

TOLERANCE = 1e-3
"""In clipping bounds: float32, where sums of a batch and weights are."""
MANY = 200
"""Images of the patient with many."""
_PHYSICAL_BATCH = 16


def clipping(study: Study, keys: Keys) -> Findings:
    """Each of some difficult patients, alone at a hospital: the norm of the contribution."""
    image = _image(study, keys)
    many = (image + 0.01 * random_images(MANY, tuple(image.shape[1:]), keys())).clamp(0.0, 1.0)
    broken = many.clone()
    broken.view(-1)[0] = math.nan
    patients = {
        "1 image": image,
        f"{MANY} images": many,
        "1 image × 10⁶": 1e6 * image,
        f"{MANY} images × 10⁶": 1e6 * many,
        "1 image with a NaN": broken[:1],
        f"{MANY} images, one with a NaN": broken,
        "1 image of infinities": torch.full_like(image, math.inf),
    }
    hospital = _Hospital(study, keys)
    return tuple(
        Finding(
            what=f"contribution / bound of a patient with {name}",
            seen=_norm(hospital.contribution(images)),
            most=1.0 + TOLERANCE,
        )
        for name, images in patients.items()
    )


def coupling(study: Study, keys: Keys) -> Findings:
    """One patient's contribution in the company of others, minus that beside a patient who contributes nothing."""
    own, other = _image(study, keys), _image(study, keys)
    company: Mapping[str, Tensor] = {
        "another patient": other,
        "one × 10⁶": 1e6 * other,
        "a dark one": torch.zeros_like(other),
        "one with a NaN": torch.where(other == other.max(), math.nan, other),
    }
    hospital = _Hospital(study, keys)
    usual = hospital.contribution(own, beside=(own, SILENT))
    return tuple(
        Finding(
            what=f"change of a contribution / bound beside {name}{what}",
            seen=_norm(hospital.contribution(own, beside=(images, label)) - usual),
            most=TOLERANCE + 4.0 * hospital.rounding,
        )
        for name, images in company.items()
        for label, what in ((NEGATIVE, ""), (SILENT, ", silent"))
    )


class _Hospital:
    """One step with everybody sampled, and next to no noise. Entries beyond eight bounds are cut, and still too large.

    A patient's contribution is the sum with the patient minus the sum with the same patient whose label is not known,
    who has no part in the loss (`simulations.audit.patients`). Both are made with the same random numbers, so that the
    noise cancels.

    Attributes:
        rounding: most that rounding moves a sum by, in clipping bounds.
    """

    def __init__(self, study: Study, keys: Keys) -> None:
        self._bound, self._model = clipping_bound(study), outline(study)
        release = Release.of(study, reach=4.0 * self._bound).quiet().in_batches_of(_PHYSICAL_BATCH)
        self._release = release.training(local_steps=1, momentum=0.0, sample_rate=1.0)
        self._key = keys().words(4).tobytes()
        self.rounding = release.opening.rounding(Manifest.of(self._model).num_weights)

    def contribution(self, images: Tensor, *, beside: tuple[Tensor, int] | None = None) -> Doubles:
        """Of a patient with these images, in clipping bounds; *beside* another one with this label."""
        return self._sum(images, NEGATIVE, beside) - self._sum(images, SILENT, beside)

    def _sum(self, images: Tensor, label: int, beside: tuple[Tensor, int] | None) -> Doubles:
        others = [] if beside is None else [beside]
        patients = patient_set(
            [images, *(theirs for theirs, _ in others)],
            [label, *(theirs for _, theirs in others)],
            task_of(self._release.study),
        )
        summed = self._release.round(self._model, [patients], CryptographicGenerator(self._key))
        return summed / self._bound


def _image(study: Study, keys: Keys) -> Tensor:
    return random_images(1, study.image.shape, keys())


def _norm(vector: Doubles) -> float:
    return float(np.linalg.norm(vector))
