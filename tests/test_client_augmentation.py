"""Images are altered each by itself, and masks go where their images go."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from client.augmentation import altered
from privacy.randomness import CryptographicGenerator
from shared_models.augmentation import Augmentation

EVERYTHING = Augmentation(
    flip=("columns", "rows"),
    rotation=40.0,
    shift=0.1,
    scale=0.3,
    shear=10.0,
    brightness=0.2,
    contrast=0.5,
    gamma=0.5,
)
SHAPES = [(1, 17, 23), (3, 16, 16), (1, 9, 12, 10)]


def generator(number: int = 0) -> CryptographicGenerator:
    return CryptographicGenerator(number.to_bytes(32, "big"))


def images_of(num: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(num, *shape, generator=torch.Generator().manual_seed(seed))


def blob(size: int = 33, *, place: tuple[int, int]) -> Tensor:
    """A square of seven around *place*, shape (1, 1, size, size)."""
    image = torch.zeros(1, 1, size, size)
    image[..., place[0] - 3 : place[0] + 4, place[1] - 3 : place[1] + 4] = 1.0
    return image


def middle(image: Tensor) -> Tensor:
    """The center of mass of one image, in pixels."""
    image = image.squeeze()
    places = torch.stack(torch.meshgrid(*(torch.arange(size) for size in image.shape), indexing="ij"), -1)
    return (places * image[..., None]).flatten(0, -2).sum(0) / image.sum()


def test_without_augmentation_nothing_is_changed_or_drawn() -> None:
    source, images = generator(), images_of(3, (1, 8, 8))
    same, masks = altered(images, Augmentation(), generator=source)
    assert same is images
    assert masks is None
    assert np.array_equal(source.uniform(2), generator().uniform(2))


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_is_altered_the_same_whatever_the_others_show_and_however_many_come_at_a_time(
    shape: tuple[int, ...],
) -> None:
    images, others = images_of(6, shape), images_of(6, shape, seed=1)
    others[2] = images[2]
    whole, _ = altered(images, EVERYTHING, generator=generator())
    assert torch.equal(altered(others, EVERYTHING, generator=generator())[0][2], whole[2])
    source = generator()
    parts = [altered(part, EVERYTHING, generator=source)[0] for part in images.split([1, 3, 2])]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)
    repeated, _ = altered(images[:1].repeat(6, *(1,) * len(shape)), EVERYTHING, generator=generator())
    assert len(repeated.flatten(1).unique(dim=0)) == 6, "each image draws for itself"


@pytest.mark.parametrize("shape", SHAPES)
def test_altered_images_are_finite_in_0_to_1_and_what_came_in_stays(shape: tuple[int, ...]) -> None:
    images = images_of(8, shape)
    before = images.clone()
    noisy = EVERYTHING.model_copy(update={"noise": 0.3})
    done, _ = altered(images, noisy, generator=generator())
    assert done.shape == images.shape
    assert 0.0 <= float(done.min()) < float(done.max()) <= 1.0
    assert torch.equal(images, before)


@pytest.mark.parametrize("axis", ["columns", "rows", "slices"])
def test_mirroring_is_exact_along_the_axis_that_is_named_and_comes_half_of_the_time(axis: str) -> None:
    images = images_of(400, (1, 4, 5, 6))
    only = Augmentation.model_validate({"flip": [axis]})
    done, _ = altered(images, only, generator=generator())
    mirrored = images.flip({"columns": -1, "rows": -2, "slices": -3}[axis])
    flipped = [torch.equal(one, other) for one, other in zip(done, mirrored, strict=True)]
    stayed = [torch.equal(one, other) for one, other in zip(done, images, strict=True)]
    assert all(one != other for one, other in zip(flipped, stayed, strict=True))
    assert 160 < sum(flipped) < 240


def test_a_shift_moves_the_image_by_no_more_than_its_share_and_as_far_as_that() -> None:
    images = blob(place=(16, 16)).repeat(200, 1, 1, 1)
    done, _ = altered(images, Augmentation(shift=0.2), generator=generator())
    moved = torch.stack([middle(one) for one in done]) - 16.0
    assert 6.0 < float(moved.abs().max()) <= 0.2 * 33 + 1e-3
    assert float(moved.mean(0).abs().max()) < 1.0


def test_a_rotation_keeps_the_distance_from_the_middle_within_its_angle() -> None:
    images = blob(place=(16, 26)).repeat(200, 1, 1, 1)
    done, _ = altered(images, Augmentation(rotation=30.0), generator=generator())
    moved = torch.stack([middle(one) for one in done]) - 16.0
    assert torch.allclose(moved.norm(dim=1), torch.tensor(10.0), atol=0.1)
    angles = torch.atan2(moved[:, 0], moved[:, 1]).rad2deg().abs()
    assert 27.0 < float(angles.max()) <= 30.5


def test_a_rotation_of_a_volume_is_one_in_millimetres() -> None:
    """Slices three times as far apart as pixels: a ball stays a ball."""
    size, voxel = (21, 61, 61), (3.0, 1.0, 1.0)
    places = torch.stack(torch.meshgrid(*(torch.arange(n) - n // 2 for n in size), indexing="ij"), -1)
    apart = (places * torch.tensor(voxel)).norm(dim=-1)
    ball = torch.exp(-((apart / 9.0) ** 2))[None, None]
    turned, _ = altered(ball, Augmentation(rotation=90.0), generator=generator(), voxel=voxel)
    assert float((turned - ball).abs().max()) < 0.05
    squashed, _ = altered(ball, Augmentation(rotation=90.0), generator=generator())
    assert float((squashed - ball).abs().max()) > 0.3


def test_scale_changes_the_size_between_one_over_its_factor_and_its_factor() -> None:
    images = blob(place=(16, 16)).repeat(200, 1, 1, 1)
    done, _ = altered(images, Augmentation(scale=0.5), generator=generator())
    sides = done.sum((1, 2, 3)).sqrt() / 7.0
    assert 1.0 / 1.55 < float(sides.min()) < 0.72
    assert 1.4 < float(sides.max()) < 1.55


def test_levels_are_changed_as_the_study_says() -> None:
    images = torch.full((300, 1, 4, 4), 0.25)
    bright, _ = altered(images, Augmentation(brightness=0.1), generator=generator())
    assert 0.15 <= float(bright.min()) < 0.16 < 0.34 < float(bright.max()) <= 0.35
    contrast, _ = altered(images, Augmentation(contrast=1.0), generator=generator())
    assert 0.0 <= float(contrast.min()) < 0.01 < 0.37 < float(contrast.max()) <= 0.3751
    gamma, _ = altered(images, Augmentation(gamma=1.0), generator=generator())
    assert 0.0625 <= float(gamma.min()) + 1e-6 < 0.07 < 0.48 < float(gamma.max()) <= 0.5 + 1e-6
    noisy, _ = altered(images, Augmentation(noise=0.05), generator=generator())
    deviations = (noisy - images).flatten(1).std(1)
    assert 0.04 < float(deviations.max()) < 0.09
    assert math.isclose(float((noisy - images).mean()), 0.0, abs_tol=0.003)


@pytest.mark.parametrize("shape", [(1, 24, 24), (1, 10, 16, 12)])
@pytest.mark.parametrize("channels", [(), (2,)])
def test_masks_go_where_their_images_go_and_keep_their_values(
    shape: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    """A mask that is its image: where both are moved, they still agree but at borders."""
    images = torch.nn.functional.interpolate(
        (images_of(6, (1, *(3,) * (len(shape) - 1))) > 0.5).float(), size=shape[1:], mode="nearest"
    )
    masks = (images[:, 0] * 7).to(torch.uint8)
    if channels:
        masks = torch.stack([masks, masks], 1)
    moving = Augmentation(
        flip=("columns", "rows"), rotation=30.0, shift=0.1, scale=0.2, shear=10.0, brightness=0.2
    )
    _, moved = altered(images, moving, generator=generator(), masks=masks)
    assert moved is not None
    assert moved.shape == masks.shape
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) == {0, 7}
    still = moving.model_copy(update={"brightness": 0.0})
    seen = altered(images, still, generator=generator())[0][:, 0] > 0.5
    labelled = (moved[:, 0] if channels else moved) == 7
    assert float((seen != labelled).float().mean()) < 0.02
    assert not torch.equal(moved, masks)


def test_masks_are_mirrored_exactly_and_untouched_by_levels() -> None:
    images, masks = images_of(20, (1, 6, 7)), torch.randint(0, 5, (20, 6, 7))
    done, moved = altered(
        images, Augmentation(flip=("columns",), gamma=0.5), generator=generator(), masks=masks
    )
    assert moved is not None
    mirrored = [not torch.equal(one, other) for one, other in zip(moved, masks, strict=True)]
    assert 0 < sum(mirrored) < 20
    for number, was in enumerate(mirrored):
        assert torch.equal(moved[number], masks[number].flip(-1) if was else masks[number])
    assert done.shape == images.shape


def test_an_empty_batch_stays_empty() -> None:
    done, _ = altered(torch.zeros(0, 1, 8, 8), EVERYTHING, generator=generator())
    assert done.shape == (0, 1, 8, 8)
