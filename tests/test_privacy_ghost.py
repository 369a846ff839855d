"""Ghost clipping gives what exact autograd gives, and refuses what it cannot give."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from exact_gradients import STUDY, TASK, exact_sum, random_images
from exact_gradients import norm_of as norm_of_sum
from ghost_models import (
    LAYERS,
    MODELS,
    UNet,
    clipped,
    distance,
    exact,
    hard_patients_error,
    images_of,
    made,
    norm_of,
    resnet,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from privacy.clipping import ClippedGradientSum, Norms, UnsupportedModelError, check_supported
from privacy.ghost.patients import Rows
from privacy.ghost.sums import GhostClipping
from shared_models.architectures import build_model

ROUNDING = 1e-5
"""Of a clipped sum, in units of the bound and a patient."""
WAYS = [Norms.CHEAPEST, Norms.SAMPLES, Norms.GRAM]


def middle_bound(model: nn.Module, images: Tensor) -> float:
    """A bound that clips some patients and leaves others."""
    norms = sorted(norm_of(exact(model, image[None], 1e30)) for image in images)
    return norms[len(norms) // 2]


# Equal to exact autograd


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("norms", WAYS)
@pytest.mark.parametrize("name", LAYERS)
def test_each_layers_clipped_sum_equals_exact_autograd_whichever_way_its_norm_is_computed(
    name: str, norms: Norms
) -> None:
    make, shape = LAYERS[name]
    model, images = made(make), images_of((5, *shape)) * torch.logspace(-1, 1, 5).view(-1, *(1,) * len(shape))
    for bound in (1e-3, middle_bound(model, images), 1e6):
        want = exact(model, images, bound)
        error = distance(clipped(model, images, bound, norms=norms), want)
        assert error <= ROUNDING * min(bound * len(images), norm_of(want) + bound)


@pytest.mark.slow
@pytest.mark.parametrize("norms", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_each_models_clipped_sum_equals_exact_autograd_whichever_way_norms_are_computed(
    name: str, norms: Norms
) -> None:
    make, shape = MODELS[name]
    model, images = made(make), images_of((4, *shape))
    images[1], images[2] = 0.0, images[2] * 1e6
    bound = middle_bound(model, images)
    error = distance(clipped(model, images, bound, norms=norms), exact(model, images, bound))
    assert error <= ROUNDING * bound * len(images)


@pytest.mark.parametrize("norms", WAYS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_the_registered_cnns_clipped_sum_equals_exact_autograd(scale: float, norms: Norms) -> None:
    images, labels = random_images(1, 6, scale)
    for bound in (0.01, 1.0, 1e3):
        summed = ClippedGradientSum(build_model(STUDY), max_grad_norm=bound, norms=norms)
        summed.add(images, labels, loss=TASK.loss)
        want = exact_sum(images, labels, bound)
        error = distance(summed.take(), want)
        assert error <= ROUNDING * min(bound * len(images), norm_of_sum(want) + bound)


@pytest.mark.slow
@pytest.mark.parametrize("norms", WAYS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", MODELS)
def test_one_broken_image_takes_its_patient_out_and_nobody_else(
    name: str, broken: float, norms: Norms
) -> None:
    make, shape = MODELS[name]
    model, images = made(make), images_of((3, *shape))
    whole = images.clone()
    images[1].flatten()[5] = broken
    got = clipped(model, images, 0.5, norms=norms)
    assert distance(got, exact(model, whole[[0, 2]], 0.5)) <= ROUNDING * 0.5 * 2
    assert norm_of(clipped(model, images[1:2], 0.5, norms=norms)) == 0.0


# Several images of a patient


@pytest.mark.slow
@pytest.mark.parametrize("norms", WAYS)
@pytest.mark.parametrize("name", [*LAYERS, *MODELS])
def test_a_patients_images_are_summed_before_they_are_clipped(name: str, norms: Norms) -> None:
    """Patients with one, two and three images, in any order, and a number that no image has."""
    make, shape = {**LAYERS, **MODELS}[name]
    if name == "conv with padding same":
        pytest.skip("like the others; torch warns of it")
    patient = torch.tensor([4, 0, 1, 0, 4, 4])
    model, images = made(make), images_of((6, *shape))
    for bound in (0.05, 1e6):
        want = exact(model, images, bound, patient=patient)
        got = clipped(model, images, bound, norms=norms, patient=patient)
        assert distance(got, want) <= ROUNDING * min(bound * 3, norm_of(want) + bound)


@pytest.mark.parametrize("norms", WAYS)
def test_a_patient_with_one_broken_image_of_three_contributes_nothing(norms: Norms) -> None:
    model, images = made(resnet), images_of((5, 1, 28, 28))
    whole = images.clone()
    images[3, 0, 2, 2] = float("nan")
    got = clipped(model, images, 0.5, norms=norms, patient=torch.tensor([0, 1, 0, 1, 1]))
    want = exact(model, whole[[0, 2]], 0.5, patient=torch.tensor([0, 0]))
    assert distance(got, want) <= ROUNDING * 0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "name",
    [
        *LAYERS,
        *(
            pytest.param(name, marks=pytest.mark.thorough) if name in ("U-Net", "DenseNet-121") else name
            for name in MODELS
        ),
    ],
)
def test_zeros_a_million_times_as_much_a_nan_and_200_images_of_a_patient_are_summed_exactly(
    name: str, precision: torch.dtype
) -> None:
    if precision is torch.float64 and (name == "U-Net" or "torch.func" in name):
        pytest.skip("layers by torch.func are in float32 only")
    make, shape = {**LAYERS, **MODELS}[name]
    assert hard_patients_error(made(make), shape, precision=precision) <= ROUNDING


@pytest.mark.parametrize("patient", [torch.tensor([0, -1]), torch.tensor([0]), torch.tensor([0.0, 1.0])])
def test_rows_without_a_patient_each_are_refused(patient: Tensor) -> None:
    with pytest.raises(ValueError, match="must number the patient of each of the 2 rows"):
        Rows.of(2, patient)


# The bound


@pytest.mark.slow
@pytest.mark.parametrize("norms", WAYS)
@pytest.mark.parametrize("name", [*LAYERS, *MODELS])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_no_patient_contributes_more_than_the_bound_rounding_included(name: str, norms: Norms) -> None:
    make, shape = {**LAYERS, **MODELS}[name]
    model, bound = made(make), 1e-4
    for seed, scale in enumerate((0.1, 1.0, 1e3)):
        contribution = norm_of(clipped(model, images_of((1, *shape), seed) * scale, bound, norms=norms))
        assert 0.9999 * bound < contribution <= bound


@pytest.mark.parametrize("norms", WAYS)
def test_gradients_that_cancel_over_positions_stay_within_the_bound(norms: Norms) -> None:
    """A thousand positions whose parts are far larger than what is left of them."""
    model = nn.Conv1d(4, 4, 1)
    inputs = images_of((1, 4, 1024)) + 100.0
    weights = images_of((4, 1024), 1)
    weights = weights - weights.mean(1, keepdim=True)
    for leftover in (0.0, 1e-7, 1e-6, 1e-4, 1e-2):
        ghost = GhostClipping(model, norms=norms)

        def losses(leftover: float = leftover) -> Tensor:
            return (model(inputs) * (weights + leftover)).flatten(1).sum(1)

        found = ghost.clipped(losses, Rows.of(1, None), max_grad_norm=1e-3)
        assert norm_of([part for part in found.parts if part is not None]) <= 1e-3


# What is refused


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.layer(self.layer(rows)))


class Checkpointed(CalledTwice):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows.requires_grad_()
        return self.head(checkpoint(self.layer, rows, use_reentrant=self.reentrant))


class UsedElsewhere(CalledTwice):
    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.layer(rows)) + F.linear(rows, self.layer.weight).sum(1, keepdim=True)


class OwnWeight(CalledTwice):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.layer(rows)) + self.shift


class ChangedInPlace(CalledTwice):
    def forward(self, rows: Tensor) -> Tensor:
        hidden = torch.relu(rows)
        outputs = self.layer(hidden)
        hidden.add_(1.0)
        return self.head(outputs + hidden)


class Tiled(CalledTwice):
    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.layer(torch.cat((rows, 2 * rows)))).view(2, len(rows)).t()


class TwoInputs(CalledTwice):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(4, 4, 4)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.layer(rows, rows))


def tied() -> nn.Module:
    model = CalledTwice()
    model.head = nn.Linear(4, 4)
    model.head.weight = model.layer.weight
    return model


def attention() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2, batch_first=True))


def weight_norm(old: bool) -> nn.Module:
    if not old:
        return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 1)))


REFUSED = {
    "a layer called twice": (CalledTwice, "layer layer is called more than once"),
    "checkpointing": (lambda: Checkpointed(reentrant=False), "no activation checkpointing"),
    "reentrant checkpointing": (lambda: Checkpointed(reentrant=True), "no activation checkpointing"),
    "a weight used elsewhere": (UsedElsewhere, "weight layer.weight is used outside of the layer"),
    "a weight beside layers": (OwnWeight, r"module at the top \(OwnWeight\) has weights of its own"),
    "an input changed in place": (ChangedInPlace, "input of layer layer is changed in place"),
    "other rows": (Tiled, r"layer layer sees a tensor of shape \(4, 4\) for 2 images"),
    "two inputs": (TwoInputs, "layer layer is not called with one tensor"),
    "tied weights": (tied, "weight head.weight is tied to layer.weight"),
    "attention": (attention, "has weights of its own beside other layers|MultiheadAttention"),
    "weight norm": (
        lambda: weight_norm(False),
        "has weights of its own beside|is not called with one tensor",
    ),
    "weight norm, the old one": (lambda: weight_norm(True), "is used outside of the layer"),
    "a recurrent layer": (lambda: nn.LSTM(4, 4, batch_first=True), "LSTM"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_not_exactly_one_gradient_for_each_weight_is_refused_before_training(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=words):
        check_supported(make(), image_shape=(4,))


@pytest.mark.parametrize(
    "name", ["a layer called twice", "a weight used elsewhere", "an input changed in place"]
)
def test_it_is_refused_in_the_pass_as_well_and_the_model_is_left_as_it_was(name: str) -> None:
    make, words = REFUSED[name]
    model = make()
    with pytest.raises(UnsupportedModelError, match=words):
        clipped(model, images_of((3, 4)), 1.0)
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(2),
        nn.BatchNorm2d(2, affine=False),
        nn.SyncBatchNorm(2),
        nn.BatchNorm2d(2).requires_grad_(False),
    ],
)
def test_batch_normalisation_is_refused_frozen_too_with_what_to_use_instead(norm: nn.Module) -> None:
    with pytest.raises(UnsupportedModelError, match=r"1 is a \w+, which mixes the patients.*use GroupNorm"):
        check_supported(nn.Sequential(nn.Conv2d(1, 2, 3), norm))


def test_instance_norm_with_running_statistics_is_refused_and_without_them_allowed() -> None:
    def model(track: bool) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, affine=True, track_running_stats=track))

    check_supported(model(False), image_shape=(1, 6, 6))
    with pytest.raises(UnsupportedModelError, match="keeps statistics over patients"):
        check_supported(model(True))


class Mixing(CalledTwice):
    """Normalises over the batch by hand, which no list of layers tells."""

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.layer(rows - rows.mean(0)))


class MixingByNumbers(Mixing):
    """The same, out of autograd's sight."""

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.layer(rows - rows.mean(0).detach()))


class MixingByTheLargest(Mixing):
    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.layer(rows / rows.abs().max().detach()))


class MixingUnderAnEmptyHead(Mixing):
    """No output tells before the first step."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


@pytest.mark.parametrize("make", [Mixing, MixingByNumbers, MixingByTheLargest, MixingUnderAnEmptyHead])
def test_a_model_that_mixes_rows_by_hand_is_found_out_by_trying(make: type[nn.Module]) -> None:
    with pytest.raises(UnsupportedModelError, match="depends on another image of the batch"):
        check_supported(make(), image_shape=(4,))


def test_trying_a_model_out_changes_neither_its_weights_nor_torchs_random_state() -> None:
    model = made(UNet)
    before, state = [weight.clone() for weight in model.parameters()], torch.get_rng_state()
    check_supported(model, image_shape=(1, 12, 12))
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert all(weight.grad is None for weight in model.parameters())


# What goes on working


def test_frozen_weights_get_no_gradient_and_the_others_the_exact_one() -> None:
    make, shape = MODELS["ResNet-18"]
    model, images = made(make), images_of((3, *shape))
    for weight in [*model[0].parameters(), model[-1].bias, model[4].norm1.weight]:
        weight.requires_grad_(False)
    got, want = clipped(model, images, 0.3), exact(model, images, 0.3)
    assert len(got) == sum(weight.requires_grad for weight in model.parameters())
    assert distance(got, want) <= ROUNDING * 0.3 * 3


class NotCalled(CalledTwice):
    def forward(self, rows: Tensor) -> Tensor:
        return self.head(rows)


def test_a_layer_that_is_not_called_contributes_zero() -> None:
    spare = clipped(NotCalled(), images_of((2, 4)), 1.0)
    assert [float(part.abs().sum()) > 0 for part in spare] == [False, False, True, True]


def test_a_layer_after_which_activations_change_in_place_is_exact() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 3), nn.SiLU(inplace=True)
    )
    images = images_of((3, 1, 8, 8))
    assert distance(clipped(model, images, 0.1), exact(model, images, 0.1)) <= ROUNDING * 0.1 * 3
