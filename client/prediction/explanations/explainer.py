"""Maps of what spoke for a reading, of one model or the mean of several."""

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from client.prediction.explanations.attribution import Attribution, ExplanationRefused, Method
from client.prediction.reading import Plane, Reading
from client.training import images_at_a_time
from shared_models.model_card import ModelCard
from shared_models.model_file import TrainedModel
from shared_models.networks.network import Classifier

MOST_AT_A_TIME = 32
"""Covered images in a batch."""


class Explainer:
    """Makes a map of each reading.

    Args:
        models: that the readings are of; of several the map is the mean of their maps.
        method: which.
        output: for which; without one that with the highest probability of each reading.
        device: where it is computed; the models are moved there, and stay.

    Raises:
        ExplanationRefused: the models segment, Grad-CAM finds no maps in them, they have no such output, or Captum is
            not installed.
    """

    def __init__(
        self,
        models: Sequence[TrainedModel],
        method: Method,
        *,
        output: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        if find_spec("captum") is None:
            raise ExplanationRefused(
                "Explanations want Captum, which is not installed; install collegium[explanations]"
            )
        self._classifiers = [(trained.card, _explainable(trained, method, output)) for trained in models]
        self._method, self._output = method, output
        self._device = device or torch.device("cpu")
        for _, model in self._classifiers:
            model.to(self._device)

    def __call__(self, reading: Reading) -> Attribution:
        """Return the map of a reading."""
        output = self._output or max(reading.probabilities, key=lambda name: reading.probabilities[name])
        maps = [self._map(card, model, reading.prepared, output) for card, model in self._classifiers]
        return Attribution(method=self._method, output=output, values=np.mean(maps, axis=0, dtype=np.float32))

    def _map(self, card: ModelCard, model: Classifier, prepared: Plane, output: str) -> Plane:
        image = torch.from_numpy(np.ascontiguousarray(prepared)).to(self._device)
        number, activation = card.outputs.index(output), card.activation
        if self._method is Method.GRAD_CAM:
            from client.prediction.explanations.grad_cam import grad_cam

            found = grad_cam(model, image, output=number, activation=activation)
        else:
            from client.prediction.explanations.occlusion import occlusion

            at_a_time = min(MOST_AT_A_TIME, images_at_a_time((1, *prepared.shape)))
            found = occlusion(model, image, output=number, activation=activation, at_a_time=at_a_time)
        values: Plane = found.cpu().numpy()
        return values


def _explainable(trained: TrainedModel, method: Method, output: str | None) -> Classifier:
    """The network of a model that can be explained so. Raises ExplanationRefused."""
    model, architecture = trained.model, trained.study.model.architecture
    if not isinstance(model, Classifier):
        raise ExplanationRefused(
            f"{trained.name} says of each point what it is; the contours of its structures are drawn without being "
            "asked for, and there is nothing else to explain"
        )
    if output is not None and output not in trained.card.outputs:
        raise ExplanationRefused(
            f"{trained.name} has no output “{output}”; it has {', '.join(trained.card.outputs)}"
        )
    if method is Method.GRAD_CAM and not model.has_maps:
        raise ExplanationRefused(
            f"{trained.name} is of the architecture {architecture}, whose head sees no maps of a convolution that "
            f"Grad-CAM could look at; ask for {Method.OCCLUSION}"
        )
    if method is Method.GRAD_CAM and _num_places(model, trained.image.shape) == 1:
        raise ExplanationRefused(
            f"{trained.name} is of the architecture {architecture}, whose last maps are a single place for images of "
            f"this size: Grad-CAM could tell no place from another; ask for {Method.OCCLUSION}"
        )
    return model


def _num_places(model: Classifier, shape: tuple[int, ...]) -> int:
    """Of the last maps, for images of this shape."""
    seen: list[Tensor] = []
    hook = model.maps.register_forward_hook(lambda module, given, maps: seen.append(maps))
    try:
        with torch.no_grad():
            model(torch.zeros((1, *shape), device=next(model.parameters()).device))
    finally:
        hook.remove()
    return seen[0][0, 0].numel()
