"""The registry of shared networks."""

from collections.abc import Callable, Mapping

import torch

from shared_models.networks.classifier import Classifier
from shared_models.networks.scattering import ScatteringClassifier
from shared_models.networks.small_cnn import SmallCNN
from shared_models.study import Study


def _small_cnn(study: Study, num_outputs: int) -> Classifier:
    return SmallCNN(
        channels=study.image.channels,
        width=study.model.width,
        num_outputs=num_outputs,
        weight_standardisation=study.model.weight_standardisation,
    )


def _small_cnn_3d(study: Study, num_outputs: int) -> Classifier:
    return SmallCNN(
        channels=study.image.channels,
        width=study.model.width,
        num_outputs=num_outputs,
        weight_standardisation=study.model.weight_standardisation,
        dimensions=3,
    )


def _scattering(study: Study, num_outputs: int) -> Classifier:
    image, model = study.image, study.model
    return ScatteringClassifier(
        channels=image.channels,
        rows=image.rows,
        columns=image.columns,
        scales=model.scales,
        angles=model.angles,
        num_outputs=num_outputs,
    )


_REGISTRY: Mapping[str, Callable[[Study, int], Classifier]] = {
    "small-cnn": _small_cnn,
    "small-cnn-3d": _small_cnn_3d,
    "scattering": _scattering,
}


def build_model(study: Study, *, num_outputs: int = 1) -> Classifier:
    """Return the study's model with its initial weights, which the study's seed fixes.

    Weights that the study does not train need no gradient. The global random state of torch is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.model.seed)
        model = _REGISTRY[study.model.architecture](study, num_outputs)
    if study.model.trainable != "all":
        model.requires_grad_(False)
        block = model.last_block if study.model.trainable == "last-block" else ()
        for module in (*block, model.head):
            module.requires_grad_(True)
    return model
