"""Volumes of slices: the order, the place and the resampled values, against SimpleITK; and what is refused."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK

from client.dicom_file import Unusable
from client.reasons import Reason
from client.volume import Slice, Volume, resampled, stacked

Doubles = npt.NDArray[np.float64]
GENERATOR = np.random.default_rng(5)


def rotation(*degrees: float) -> Doubles:
    """About the three axes, one after the other."""
    found = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[one, one, other, other], [one, other, one, other]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        found = turn @ found
    return found


def series(
    *,
    shape: tuple[int, int, int] = (12, 20, 16),
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.7),
    turned: Doubles | None = None,
    tilt: float = 0.0,
) -> list[Slice]:
    """Slices of a smooth random volume; *tilt* moves each by so many mm along its columns."""
    across, down, normal = (np.eye(3) if turned is None else turned).T
    grid = np.meshgrid(*(np.linspace(0.0, 1.0, size) for size in shape), indexing="ij")
    waves = GENERATOR.uniform(1.0, 5.0, (6, 3))
    values = sum(np.sin(sum(wave[axis] * grid[axis] for axis in range(3))) for wave in waves)
    origin = np.array([-40.0, 25.0, 110.0])
    return [
        Slice(
            values=np.asarray(values[number], dtype=np.float32),
            position=origin + number * (spacing[0] * normal + tilt * down),
            across=across,
            down=down,
            spacing=spacing[1:],
        )
        for number in range(shape[0])
    ]


def shuffled(slices: Sequence[Slice]) -> list[Slice]:
    return [slices[number] for number in GENERATOR.permutation(len(slices))]


def by_simpleitk(
    slices: Sequence[Slice],
    *,
    spacing: tuple[float, float, float],
    shape: tuple[int, int, int],
    outside: float,
) -> npt.NDArray[np.float32]:
    """The same grid, filled by SimpleITK from slices in their right order."""
    image = SimpleITK.GetImageFromArray(np.stack([one.values for one in slices]))
    first, last = slices[0], slices[-1]
    step = (last.position - first.position) / (len(slices) - 1)
    rows, columns = first.spacing
    image.SetOrigin([float(value) for value in first.position])
    image.SetSpacing([columns, rows, float(np.linalg.norm(step))])
    directions = np.stack([first.across, first.down, step / np.linalg.norm(step)], axis=1)
    image.SetDirection(directions.ravel().tolist())
    size = np.array(image.GetSize()) - 1.0
    middle = np.array(image.TransformContinuousIndexToPhysicalPoint((size / 2.0).tolist()))
    backwards = np.array(spacing[::-1])
    grid = SimpleITK.Image([*map(int, shape[::-1])], SimpleITK.sitkFloat32)
    grid.SetSpacing(backwards.tolist())
    grid.SetOrigin((middle - backwards * (np.array(shape[::-1]) - 1) / 2.0).tolist())
    found = SimpleITK.Resample(image, grid, SimpleITK.Transform(), SimpleITK.sitkLinear, outside)
    return SimpleITK.GetArrayFromImage(found)


@pytest.mark.parametrize(
    ("turned", "spacing"),
    [
        (np.eye(3), (2.5, 0.8, 0.7)),
        (rotation(20.0, -35.0, 10.0), (1.2, 1.0, 1.1)),
        (rotation(0.0, 90.0, 0.0), (2.0, 0.9, 0.9)),
        (rotation(90.0, 0.0, 0.0) @ np.diag([1.0, 1.0, 1.0]), (0.6, 0.6, 0.6)),
        (np.diag([-1.0, -1.0, 1.0]), (3.0, 0.5, 0.5)),
    ],
    ids=["axial", "oblique", "sagittal", "coronal", "from behind"],
)
def test_a_shuffled_series_gives_the_values_of_simpleitk(
    turned: Doubles, spacing: tuple[float, float, float]
) -> None:
    slices = series(turned=turned, spacing=spacing)
    grid = {"spacing": (0.5, 0.45, 0.4), "shape": (24, 22, 26)}
    found = resampled(stacked(shuffled(slices)), **grid, outside=-9.0)  # type: ignore[arg-type]
    want = by_simpleitk(slices, **grid, outside=-9.0)  # type: ignore[arg-type]
    assert (want != -9.0).mean() > 0.4
    alike = np.abs(found - want) < 1e-4
    assert alike.mean() > 0.999, "but for a place that lies on the border to rounding"


def test_a_tilted_gantry_is_upright_afterwards() -> None:
    """A plane that stands upright in the patient, seen by slices that are each a little further along their columns."""
    slices = series(spacing=(2.0, 1.0, 1.0), tilt=0.6)
    told = [
        replace(
            one, values=np.broadcast_to(one.position[1] + np.arange(20.0)[:, None], (20, 16)).astype("f4")
        )
        for one in slices
    ]
    found = resampled(stacked(shuffled(told)), spacing=(1.0, 1.0, 1.0), shape=(9, 7, 9), outside=np.nan)
    assert not np.isnan(found).any()
    assert np.allclose(found, found[:1, :, :1], atol=1e-4), (
        "the value is the place along the back, everywhere"
    )
    assert np.allclose(np.diff(found, axis=1), 1.0, atol=1e-4)


def test_the_middle_of_the_volume_is_the_middle_of_the_grid() -> None:
    volume = stacked(series(shape=(11, 21, 15), spacing=(1.0, 1.0, 1.0)))
    found = resampled(volume, spacing=(1.0, 1.0, 1.0), shape=(11, 21, 15), outside=0.0)
    assert np.abs(found - volume.values).max() < 1e-5
    cut = resampled(volume, spacing=(1.0, 1.0, 1.0), shape=(5, 5, 5), outside=0.0)
    assert np.abs(cut - volume.values[3:8, 8:13, 5:10]).max() < 1e-5
    wide = resampled(volume, spacing=(1.0, 1.0, 1.0), shape=(15, 25, 19), outside=-7.0)
    assert (wide[:2] == -7.0).all()
    assert np.abs(wide[2:-2, 2:-2, 2:-2] - volume.values).max() < 1e-5


def test_a_coarse_grid_does_not_depend_on_where_it_falls() -> None:
    """Stripes finer than the grid: without smoothing they come out as whatever the grid happens to hit."""
    slices = [
        replace(one, values=np.where(np.arange(64) % 2, 1.0, 0.0)[None].repeat(64, 0).astype("f4"))
        for one in series(shape=(8, 64, 64), spacing=(1.0, 1.0, 1.0))
    ]
    found = resampled(stacked(slices), spacing=(1.0, 8.0, 8.0), shape=(8, 6, 6), outside=0.0)
    assert np.abs(found - 0.5).max() < 0.05


def test_slices_that_are_there_twice_are_used_once() -> None:
    slices = series()
    once = stacked(slices)
    twice = stacked(shuffled([*slices, *slices[3:6]]))
    assert twice.num_dropped == 3
    assert np.array_equal(twice.values, once.values)
    assert np.allclose(twice.steps, once.steps)


def refusal(slices: Sequence[Slice]) -> Unusable:
    with pytest.raises(Unusable) as raised:
        stacked(slices)
    return raised.value


def test_what_makes_no_volume_is_refused_with_the_reason() -> None:
    slices = series()
    other = replace(slices[4], values=slices[4].values + 1.0)
    turned = replace(slices[4], across=np.array([0.0, 1.0, 0.0]), down=np.array([-1.0, 0.0, 0.0]))
    crooked = replace(slices[4], across=np.array([1.0, 1.0, 0.0]))
    cases = {
        "1 slice": slices[:1],
        "Two different slices lie at one place": [*slices, other],
        "several directions": [*slices[:4], turned, *slices[5:]],
        "several pixel spacings": [*slices[:4], replace(slices[4], spacing=(0.8, 0.9)), *slices[5:]],
        "several sizes": [*slices[:4], replace(slices[4], values=slices[4].values[:10]), *slices[5:]],
        "no two directions": [*slices[:4], crooked, *slices[5:]],
        "at one place": [slices[0], slices[0]],
        "not evenly apart": [
            *slices[:4],
            replace(slices[4], position=slices[4].position + np.array([0.0, 3.0, 0.0])),
            *slices[5:],
        ],
    }
    for words, wrong in cases.items():
        found = refusal(shuffled(wrong))
        assert words in str(found), str(found)
        assert found.reason is (Reason.BAD_ATTRIBUTE if words == "no two directions" else Reason.NO_VOLUME)


@pytest.mark.parametrize("gone", [1, 5, 10])
def test_a_missing_slice_is_told_with_the_distance(gone: int) -> None:
    slices = series()
    found = refusal(shuffled([*slices[:gone], *slices[gone + 1 :]]))
    assert found.reason is Reason.MISSING_SLICE
    assert "5.00 mm between slices that are 2.50 mm apart" in found.detail


def test_positions_rounded_as_scanners_round_them_are_taken() -> None:
    slices = series(spacing=(0.625, 0.7, 0.7), turned=rotation(7.0, 3.0, 0.0), shape=(40, 8, 8))
    rounded = [
        replace(
            one,
            position=np.round(one.position, 2),
            across=np.round(one.across, 5),
            down=np.round(one.down, 5),
        )
        for one in slices
    ]
    found: Volume = stacked(shuffled(rounded))
    assert np.abs(found.steps - stacked(slices).steps).max() < 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # numpy's of sums beyond all numbers
@pytest.mark.parametrize(
    "spacing", [(1.0, 1e-6, 1e-6), (1e-9, 1.0, 1.0), (1e-320, 1.0, 1.0), (1e307, 1.0, 1.0)]
)
def test_slices_that_claim_impossible_distances_are_refused_before_they_are_smoothed_for_hours(
    spacing: tuple[float, float, float],
) -> None:
    assert refusal(series(spacing=spacing)).reason is Reason.NO_VOLUME
