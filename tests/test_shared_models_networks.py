"""Every architecture of the catalogue: its shape, its weights, and its patients' gradients, clipped and summed."""

import re
from pathlib import Path

import pytest
import torch
from ghost_models import clipped, distance, exact, hard_patients_error, images_of, norm_of

from privacy.clipping import UnsupportedModelError, check_supported
from shared_models.architectures import BUILDS, build_network
from shared_models.catalogue import CATALOGUE
from shared_models.manifest import Manifest
from shared_models.networks.network import Network
from shared_models.study import Image, Model

ROUNDING = 1e-5
"""Of a clipped sum, in units of the bound and a patient."""
PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
EACH = pytest.mark.parametrize("name", CATALOGUE)
LARGE = (
    "resnet-34",
    "resnet-50",
    "resnet-18-3d",
    "resnet-34-3d",
    "resnet-50-3d",
    "densenet-121",
    "densenet-121-3d",
    "unet-3d",
    "res-unet-3d",
)
"""With 200 images of a patient these take up to a minute each."""


def image_of(*size: int, channels: int = 1) -> Image:
    """Of rows and columns, or slices, rows and columns."""
    volume = {"depth": size[0], "spacing": 1.0, "slice_spacing": 1.0} if len(size) == 3 else {}
    return Image(
        modalities=("CT",),
        channels=channels,
        rows=size[-2],
        columns=size[-1],
        intensity="percentiles",
        **volume,
    )


def small(name: str, **changes: object) -> Model:
    """The narrowest of its kind, for the smallest images."""
    own = {"width": 8, "stem": "3x3", "levels": 3}
    keys = CATALOGUE[name].keys
    return Model.model_validate(
        {"architecture": name, **{key: value for key, value in own.items() if key in keys}, **changes}
    )


def smallest_image(model: Model) -> Image:
    side = max(8, model.smallest_side)
    return image_of(*(side, side + 1, side)[: CATALOGUE[model.architecture].dimensions])


def built(model: Model, image: Image, *, num_outputs: int = 2) -> Network:
    return build_network(model, image, num_outputs=num_outputs)


def test_the_catalogue_and_the_builders_name_the_same_architectures() -> None:
    assert list(BUILDS) == list(CATALOGUE)


@EACH
def test_each_architecture_gives_finite_logits_of_its_shape_for_its_smallest_image(name: str) -> None:
    model = small(name)
    image = smallest_image(model)
    logits = built(model, image, num_outputs=3)(torch.rand(2, *image.shape))
    assert logits.shape == (2, 3, *(image.shape[1:] if CATALOGUE[name].dense else ()))
    assert logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["7x7", "3x3"])
@pytest.mark.parametrize("name", [name for name, one in CATALOGUE.items() if "stem" in one.keys])
def test_a_stem_of_seven_halves_the_image_twice_and_one_of_three_does_not(name: str, stem: str) -> None:
    model = small(name, stem=stem)
    image = image_of(*(32,) * CATALOGUE[name].dimensions)
    sizes = []
    network = built(model, image)
    network.blocks[1][0].register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[2:]))
    network(torch.rand(1, *image.shape))
    assert set(sizes[0]) == {8 if stem == "7x7" else 32}


@pytest.mark.parametrize("name", [name for name, one in CATALOGUE.items() if one.dense])
@pytest.mark.parametrize("levels", [2, 4])
def test_a_dense_network_takes_any_size_that_is_not_too_small(name: str, levels: int) -> None:
    image = image_of(*(17, 18, 23)[: CATALOGUE[name].dimensions])
    logits = built(small(name, levels=levels), image)(torch.rand(1, *image.shape))
    assert logits.shape[2:] == image.shape[1:]


@pytest.mark.slow
@EACH
def test_each_architectures_clipped_sum_equals_exact_autograd_of_each_patient(name: str) -> None:
    model = small(name)
    image = smallest_image(model)
    network = built(model, image)
    images = torch.rand(3, *image.shape, generator=torch.Generator().manual_seed(2))
    images[1] *= 5.0
    bound = sorted(norm_of(exact(network, one[None], 1e30)) for one in images)[1]
    want = exact(network, images, bound)
    assert distance(clipped(network, images, bound), want) <= ROUNDING * bound * len(images)
    two_and_one = torch.tensor([0, 1, 0])
    want = exact(network, images, bound, patient=two_and_one)
    got = clipped(network, images, bound, patient=two_and_one)
    assert distance(got, want) <= ROUNDING * bound * 2


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.thorough) if name in LARGE else name for name in CATALOGUE],
)
def test_each_architectures_clipped_sum_is_exact_for_zeros_huge_and_broken_images_and_many_of_a_patient(
    name: str, precision: torch.dtype
) -> None:
    model = small(name)
    image = smallest_image(model)
    assert hard_patients_error(built(model, image), image.shape, precision=precision) <= ROUNDING


@EACH
def test_each_architecture_may_be_trained_with_differential_privacy_with_dropout_too(name: str) -> None:
    model = small(name, dropout=0.3)
    image = smallest_image(model)
    network = built(model, image)
    check_supported(network, image_shape=image.shape)
    assert Manifest.of(network).num_weights == sum(weight.numel() for weight in network.parameters())


def test_a_network_with_batch_normalisation_is_refused_with_the_reason() -> None:
    network = built(small("resnet-18"), image_of(16, 16))
    network.bn1 = torch.nn.BatchNorm2d(8)  # type: ignore[assignment]
    with pytest.raises(
        UnsupportedModelError, match=r"bn1 is a BatchNorm2d, which mixes the patients.*GroupNorm"
    ):
        check_supported(network)
    with pytest.raises(ValueError, match="must have no buffers"):
        Manifest.of(network)


@EACH
def test_the_last_blocks_are_trained_with_the_head_and_the_others_stay(name: str) -> None:
    if "trainable" not in CATALOGUE[name].keys:
        pytest.skip("has nothing but a head")
    image = smallest_image(small(name))
    whole = built(small(name), image)
    for number in (1, 2, len(whole.blocks)):
        network = built(small(name, trainable="last-block", last_blocks=number), image)
        trained = {id(one) for one in network.parameters() if one.requires_grad}
        groups = [*network.blocks[-number:], (network.head,)]
        assert trained == {id(one) for group in groups for module in group for one in module.parameters()}
    every = {id(one) for block in whole.blocks for module in block for one in module.parameters()}
    assert every | {id(one) for one in whole.head.parameters()} == {id(one) for one in whole.parameters()}
    with pytest.raises(ValueError, match=rf"{name} has {len(whole.blocks)} blocks"):
        built(small(name, trainable="last-block", last_blocks=len(whole.blocks) + 1), image)


# Dropout


def test_dropout_is_drawn_for_each_image_by_itself_and_ends_with_training() -> None:
    network = built(small("small-cnn", dropout=0.5), image_of(16, 16)).train()
    image = torch.rand(1, 1, 16, 16)
    logits = network(image.repeat(64, 1, 1, 1))
    assert len(logits.unique(dim=0)) > 32, "the same image, another mask for each row"
    network.eval()
    assert torch.equal(network(image), network(image))


def test_with_dropout_a_patient_contributes_the_same_whoever_the_others_are() -> None:
    """The masks depend on places in the batch, never on what the images show."""
    network = built(small("small-cnn", dropout=0.5), image_of(16, 16)).train()
    images, others = images_of((4, 1, 16, 16), 1), images_of((4, 1, 16, 16), 2)
    others[0] = images[0]
    contributions = []
    for batch in (images, others):
        without = batch.clone()
        without[0] = float("nan")  # takes this patient out, and nobody else
        sums = []
        for these in (batch, without):
            torch.manual_seed(7)
            sums.append(clipped(network, these, 1e-2))
        contributions.append([whole - rest for whole, rest in zip(*sums, strict=True)])
    assert norm_of(contributions[0]) == pytest.approx(1e-2, rel=1e-3)
    assert distance(*contributions) <= ROUNDING * 1e-2 * 8


# docs/architectures.md


@pytest.mark.slow
@EACH
def test_the_page_of_architectures_says_how_many_weights_each_has_and_which_images_it_takes(
    name: str,
) -> None:
    (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    dimensions, output, keys, weights, smallest, source = (cell.strip() for cell in row.split(" | "))
    one, model = CATALOGUE[name], Model(architecture=name)
    assert dimensions == f"{one.dimensions}-D"
    assert output == ("each pixel" if one.dense else "image")
    assert set(re.findall(r"`(\w+)`", keys)) == set(one.keys) - {
        "dropout", "trainable", "last_blocks", "weights"
    }  # fmt: skip
    side = max(32, model.smallest_side)
    with torch.device("meta"):
        network = built(model, image_of(*(side,) * one.dimensions), num_outputs=1)
    assert weights == f"{sum(weight.numel() for weight in network.parameters()):,}"
    assert smallest.startswith(f"{model.smallest_side}")
    assert source == one.source
