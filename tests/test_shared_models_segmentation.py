"""Segmentation: Dice from sums equals that of all patients together; no patient moves them by more than claimed."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from studies import ONE_QUESTION, study_text
from torch import Tensor

from shared_models.configuration import ConfigurationError, parse_toml
from shared_models.study import Study
from shared_models.tasks.histograms import LOSS_CUT, LOSS_UNITS
from shared_models.tasks.registry import task_of
from shared_models.tasks.segmentation import Segmentation
from shared_models.tasks.task import MISSING

ONE = Segmentation(num_bins=200, names=("lesion",), weights=(1.0,))
TWO = Segmentation(num_bins=200, names=("liver", "tumour"), weights=(1.0, 3.0), dice_weight=0.3)
EACH = pytest.mark.parametrize("task", [ONE, TWO], ids=["one structure", "two structures"])
UNET = {'architecture = "small-cnn"': 'architecture = "unet"\nlevels = 2'}


def some_images(
    task: Segmentation, seed: int, *, patients: int = 40, shape: tuple[int, ...] = (9, 7)
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Logits, masks, and the first image of each patient; some without any structure, some not marked at all."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 4, patients)
    first = np.concatenate([[0], np.cumsum(sizes)])
    num = int(first[-1])
    masks = np.zeros((num, 1, *shape), dtype=np.float32)
    blobs = random.random((num, *shape)) < 0.3
    masks[:, 0][blobs] = random.integers(1, len(task.names) + 1, blobs.sum())
    for patient in range(0, patients, 3):  # without the last structure
        own = slice(first[patient], first[patient + 1])
        masks[own][masks[own] == len(task.names)] = 0
    logits = random.normal(size=(num, task.num_outputs, *shape))
    for number in range(task.num_outputs):
        logits[:, number] += 2.0 * (masks[:, 0] == number + (task.num_outputs == 1))
    for patient in range(0, patients, 5):  # nothing is marked
        logits[first[patient] : first[patient + 1], -1] = -50.0
    return torch.from_numpy(logits), torch.from_numpy(masks), first


def evaluated(task: Segmentation, logits: Tensor, masks: Tensor, first: np.ndarray) -> np.ndarray:
    """Statistics of these patients."""
    kept = task.kept(logits, masks).numpy()
    labels = np.zeros((len(logits), len(task.names)), dtype=np.int64)
    return task.statistics(*task.by_patient(kept, labels, first))


def marked(task: Segmentation, logits: Tensor) -> np.ndarray:
    found = logits.numpy()
    return (found[:, 0] > 0).astype(int) if len(task.names) == 1 else found.argmax(axis=1)


def reference(task: Segmentation, logits: Tensor, masks: Tensor, first: np.ndarray) -> dict[str, float]:
    """Plain sums over all voxels of each patient."""
    mark, mask = marked(task, logits), masks[:, 0].numpy().astype(int)
    wanted: dict[str, float] = {}
    for number, name in enumerate(task.names, start=1):
        dices, empty = [], []
        for begin, end in zip(first, first[1:], strict=False):
            found, true = mark[begin:end] == number, mask[begin:end] == number
            if true.any():
                dices.append(2.0 * (found & true).sum() / (found.sum() + true.sum()))
            else:
                empty.append(not found.any())
        dice = np.array(dices)
        wanted |= {
            f"dice/{name}": dice.mean(),
            f"iou/{name}": (dice / (2.0 - dice)).mean(),
            f"median_dice/{name}": np.quantile(dice, 0.5, method="inverted_cdf"),
            f"below_half/{name}": (dice < 0.5).mean(),
            f"detected/{name}": (dice > 0).mean(),
            f"num_with/{name}": len(dices),
            f"num_without/{name}": len(empty),
        }
        if empty:
            wanted[f"specificity/{name}"] = np.mean(empty)
    return wanted


@EACH
@pytest.mark.parametrize("shape", [(9, 7), (4, 5, 6)])
def test_metrics_from_sums_over_sites_are_those_of_all_patients_together(
    task: Segmentation, shape: tuple[int, ...]
) -> None:
    sites = [some_images(task, seed, shape=shape) for seed in range(3)]
    metrics = task.metrics(np.sum([evaluated(task, *site) for site in sites], axis=0))
    ends = np.cumsum([0, *(site[2][-1] for site in sites)])
    first = np.concatenate([[0], *(site[2][1:] + end for site, end in zip(sites, ends, strict=False))])
    wanted = reference(
        task, torch.cat([site[0] for site in sites]), torch.cat([site[1] for site in sites]), first
    )
    half_a_bin = 0.5 / task.num_bins
    for name, value in wanted.items():
        within = {"dice": half_a_bin, "median_dice": half_a_bin, "iou": 2 * half_a_bin}
        assert metrics[name] == pytest.approx(value, abs=within.get(name.partition("/")[0], 1e-12)), name
    assert metrics["dice"] == pytest.approx(
        np.mean([wanted[f"dice/{name}"] for name in task.names]), abs=half_a_bin
    )
    assert metrics["num_patients"] == 120
    assert metrics["num_structures"] == len(task.names)


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("shape", [(9, 7), (4, 5, 6)])
def test_dice_and_iou_of_patients_with_one_image_equal_monais(
    task: Segmentation, shape: tuple[int, ...]
) -> None:
    from monai.metrics import compute_dice, compute_iou  # takes seconds to import

    logits, masks, first = some_images(task, 11, shape=shape)
    logits, masks = logits[first[:-1]], masks[first[:-1]]
    metrics = task.metrics(evaluated(task, logits, masks, np.arange(len(first))))
    numbers = range(1, len(task.names) + 1)
    mark, mask = torch.from_numpy(marked(task, logits)), masks[:, 0]
    found, true = (torch.stack([one == number for number in numbers], dim=1) for one in (mark, mask))
    for name, compute, bins in (("dice", compute_dice, 0.5), ("iou", compute_iou, 1.0)):
        wanted = compute(found, true, ignore_empty=True).nanmean(dim=0)
        got = [metrics[f"{name}/{structure}"] for structure in task.names]
        assert got == pytest.approx(wanted.tolist(), abs=bins / task.num_bins), name
        assert (true.flatten(2).sum(-1) == 0).any(), "some patients are without it, and are left out by both"


@EACH
def test_the_log_loss_is_the_mean_over_patients_of_the_mean_over_their_images(task: Segmentation) -> None:
    logits, masks, first = some_images(task, 5)
    scores, classes = task.scores(logits).numpy(), masks[:, 0].numpy().astype(int)
    if len(task.names) == 1:
        likelihoods = np.where(classes == 1, scores[:, 0], 1.0 - scores[:, 0])
    else:
        likelihoods = np.take_along_axis(scores, classes[:, None], axis=1)[:, 0]
    of_images = (-np.log(likelihoods)).mean(axis=(1, 2))
    of_patients = [of_images[begin:end].mean() for begin, end in zip(first, first[1:], strict=False)]
    wanted = np.minimum(of_patients, LOSS_CUT).mean()
    assert task.metrics(evaluated(task, logits, masks, first))["loss"] == pytest.approx(
        wanted, abs=LOSS_CUT / LOSS_UNITS
    )


@settings(deadline=None, max_examples=40)
@example(ONE, 0, [1e300, 5e-324, 5e-324, 0.0, 0.0, 0.0, 0.0, 0.0])
@example(ONE, 0, [1e308, 1e308, 1e308, 0.0, 0.0, 0.0, 0.0, 0.0])
@given(
    st.sampled_from([ONE, TWO]),
    st.integers(0, 1000),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=8, max_size=8),
)
def test_no_patient_whatever_the_voxels_changes_the_sums_by_more_than_is_claimed(
    task: Segmentation, seed: int, values: list[float]
) -> None:
    logits, masks, first = some_images(task, seed, patients=6)
    kept = task.kept(logits, masks).numpy()
    sums, labels = task.by_patient(kept, np.zeros((len(kept), len(task.names)), dtype=np.int64), first)
    before = task.statistics(sums, labels)
    one = np.array(values[: 3 * len(task.names) + 2])[None]
    after = task.statistics(np.concatenate([sums, one]), np.concatenate([labels, labels[:1]]))
    moved = np.linalg.norm((after - before) / task.noise_units)
    assert 0 < moved <= task.l2_sensitivity + 1e-12
    assert task.metrics(after)["num_patients"] == len(sums) + 1


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([ONE, TWO]), st.integers(0, 1000))
def test_whatever_noise_the_metrics_stay_in_their_ranges(task: Segmentation, seed: int) -> None:
    random = np.random.default_rng(seed)
    exact = evaluated(task, *some_images(task, seed, patients=10))
    noised = exact + np.rint(random.normal(0, 20, exact.shape) * task.noise_units).astype(np.int64)
    for metrics in (task.metrics(exact), task.metrics(noised)):
        for name, value in metrics.items():
            most = np.inf if name.startswith("num_") else LOSS_CUT if name == "loss" else 1.0
            assert value is None or 0.0 <= value <= most, name
    assert set(task.metrics(exact)) == set(task.metrics(noised, cut=False))


def test_a_patient_without_the_structure_has_no_dice_and_is_counted_apart() -> None:
    masks = torch.zeros(2, 1, 4, 4)
    logits = torch.full((2, 1, 4, 4), -5.0)
    logits[1, 0, 0, 0] = 5.0
    metrics = ONE.metrics(evaluated(ONE, logits, masks, np.array([0, 1, 2])))
    assert metrics["dice"] is None
    assert metrics["specificity"] == 0.5
    assert (metrics["num_with/lesion"], metrics["num_without/lesion"]) == (0, 2)


def test_all_images_of_a_patient_count_as_one() -> None:
    """One image with much of the structure, well marked, and one with little, not marked at all."""
    masks, logits = torch.zeros(2, 1, 10, 10), torch.full((2, 1, 10, 10), -5.0)
    masks[0, 0, :9], logits[0, 0, :9] = 1.0, 5.0
    masks[1, 0, :1] = 1.0
    metrics = ONE.finely_binned().metrics(evaluated(ONE.finely_binned(), logits, masks, np.array([0, 2])))
    assert metrics["dice"] == pytest.approx(2 * 90 / (90 + 100), abs=0.5 / 2000)


@EACH
def test_logits_that_are_no_numbers_are_a_patient_like_any_other(task: Segmentation) -> None:
    logits, masks, first = some_images(task, 1, patients=4)
    logits[:] = torch.nan
    statistics = evaluated(task, logits, masks, first)
    assert task.metrics(statistics)["num_patients"] == 4
    assert task.metrics(statistics)["loss"] == LOSS_CUT


# The loss


def soft_dice(probability: Tensor, true: Tensor, smoothing: float) -> Tensor:
    both = (probability * true).sum()
    return (2 * both + smoothing) / (probability.sum() + true.sum() + smoothing)


@EACH
def test_the_loss_is_dice_and_weighted_cross_entropy_of_each_image(task: Segmentation) -> None:
    logits, masks, _ = some_images(task, 3, patients=3)
    for image, mask, loss in zip(logits, masks, task.loss(logits, masks), strict=True):
        classes = mask[0].long()
        if len(task.names) == 1:
            foreground = image[:1].sigmoid()
            likelihood = torch.where(classes == 1, foreground[0], 1 - foreground[0])
        else:
            shares = image.softmax(0)
            foreground = shares[1:]
            likelihood = shares.gather(0, classes[None])[0]
        dices = [
            soft_dice(foreground[number], (classes == number + 1).double(), task.smoothing)
            for number in range(len(task.names))
        ]
        weights = torch.tensor([1.0, *task.weights], dtype=torch.float64)[classes]
        entropy = (weights * -likelihood.log()).mean()
        wanted = task.dice_weight * (1 - sum(dices) / len(dices)) + (1 - task.dice_weight) * entropy
        assert float(loss) == pytest.approx(float(wanted), abs=1e-9)


@EACH
def test_the_loss_of_an_image_is_the_same_in_whatever_batch(task: Segmentation) -> None:
    logits, masks, _ = some_images(task, 4, patients=5)
    alone = torch.cat([task.loss(logits[[one]], masks[[one]]) for one in range(len(logits))])
    assert torch.allclose(task.loss(logits, masks), alone, atol=1e-12)


@EACH
def test_an_image_without_any_structure_has_a_finite_loss_and_gradient(task: Segmentation) -> None:
    for size in (0.0, 30.0, 1e4):
        logits = (torch.ones(1, task.num_outputs, 4, 4) * size).requires_grad_()
        task.loss(logits, torch.zeros(1, 1, 4, 4)).sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


@EACH
def test_what_is_not_known_has_no_loss_and_no_gradient(task: Segmentation) -> None:
    logits = torch.randn(2, task.num_outputs, 4, 4, dtype=torch.float64).requires_grad_()
    masks = torch.full((2, 1, 4, 4), float(MISSING))
    losses = task.loss(logits, masks)
    assert losses.detach().numpy() == pytest.approx(0.0, abs=1e-12)
    losses.sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()


# The table


def segmentation(structures: str, more: str = "") -> Study:
    table = f'kind = "segmentation"\nstructures = [{structures}]\n{more}'
    return parse_toml(study_text({ONE_QUESTION: table, **UNET}), Study, origin="study.toml")


def test_one_structure_has_one_output_and_several_have_one_more_for_the_background() -> None:
    two = segmentation('{ name = "liver", values = [1] }, { name = "tumour", values = [2, 3] }')
    assert task_of(two).output_names == ("background", "liver", "tumour")
    assert task_of(two).activation == "softmax"
    assert task_of(segmentation('{ name = "lesion" }')).output_names == ("lesion",)


@pytest.mark.parametrize(
    ("structures", "more", "told"),
    [
        ('{ name = "a", values = [1] }, { name = "a", values = [2] }', "", "needs a name of its own"),
        ('{ name = "a", values = [1] }, { name = "b" }', "", "needs the values that mean it"),
        ('{ name = "a", values = [1] }, { name = "b", values = [1] }', "", "belongs to one structure"),
        ('{ name = "background" }', "", "no structure can be called"),
        ('{ name = "a", values = [0] }', "", "greater than or equal to 1"),
        ('{ name = "a" }', "dice_weight = 1.5", "less than or equal to 1"),
        ('{ name = "a" }', "smoothing = 0.0", "greater than 0"),
        ("", "", "at least 1 item"),
    ],
)
def test_a_wrong_table_is_told_with_what_is_allowed(structures: str, more: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        segmentation(structures, more)


def test_masks_need_a_network_that_says_something_of_each_point_and_only_they_do() -> None:
    table = 'kind = "segmentation"\nstructures = [{ name = "lesion" }]\n'
    with pytest.raises(ConfigurationError, match='take one of "unet", "res-unet"'):
        parse_toml(study_text({ONE_QUESTION: table}), Study, origin="study.toml")
    with pytest.raises(ConfigurationError, match="says something of each point"):
        parse_toml(study_text(UNET), Study, origin="study.toml")


def test_a_study_of_masks_takes_no_files_of_several_frames() -> None:
    table = 'kind = "segmentation"\nstructures = [{ name = "lesion" }]\n'
    changes = {ONE_QUESTION: table, **UNET, "rows = 16": 'frames = "middle"\nrows = 16'}
    with pytest.raises(ConfigurationError, match="which of the frames a mask was drawn on"):
        parse_toml(study_text(changes), Study, origin="study.toml")
