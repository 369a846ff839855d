"""Grad-CAM, by Captum.

Source: Selvaraju and others (2017), "Grad-CAM: visual explanations from deep networks via gradient-based
localization", equations 1 and 2.
"""

import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import Tensor

from client.prediction.explanations.log_odds import Activation, log_odds
from shared_models.networks.network import Classifier

_MODES = {2: "bilinear", 3: "trilinear"}


def grad_cam(model: Classifier, image: Tensor, *, output: int, activation: Activation) -> Tensor:
    """Return the map of one image.

    The last maps, which a network takes the mean over places of, are weighted by the mean gradient of the output's
    log odds and added; what is negative is put to 0, and the rest enlarged to the image. Times the number of places,
    as here, the sum before that has as its mean over places, in the networks of the catalogue, what the image adds to
    the head's bias in log odds: with one output exactly, else to first order.

    Args:
        model: has maps, in evaluation mode; its weights need no gradient.
        image: float32, shape (channels, ...) in [0, 1].
        output: which.
        activation: of the task.

    Returns:
        float32, shape of *image* without its channels, at least 0.
    """
    coarse = signed_maps(model, image, output=output, activation=activation).relu()
    size = image.shape[1:]
    enlarged = F.interpolate(coarse[None, None], size=size, mode=_MODES[len(size)], align_corners=False)
    return enlarged[0, 0]


def signed_maps(model: Classifier, image: Tensor, *, output: int, activation: Activation) -> Tensor:
    """Return the weighted sum of the last maps, in their own size, before anything is put to 0."""
    cam = LayerGradCam(lambda images: log_odds(model(images), output, activation), model.maps)
    with torch.enable_grad():
        asked = image[None].detach().clone().requires_grad_(True)
        found = cam.attribute(asked, relu_attributions=False)
    weighted: Tensor = found.detach()[0, 0]
    return weighted * weighted.numel()
