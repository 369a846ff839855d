"""Poisson sampling of patients, the sampling that the accountant assumes."""

import numpy as np
from numpy.typing import NDArray

from privacy.randomness import CryptographicGenerator


def sample_patients(
    num_patients: int, *, sample_rate: float, generator: CryptographicGenerator
) -> NDArray[np.int64]:
    """Return the positions of the sampled patients, increasing; possibly none.

    *Guarantee*: each patient is in the sample with probability ``sample_rate``, independently of all others and
    of all other steps, whatever the number of that patient's images.

    Source: Abadi et al. (2016), section 3.1; the sample's size is random, an empty one is a valid step.
    """
    return np.flatnonzero(generator.uniform(num_patients) < sample_rate).astype(np.int64)


def pick_images(
    patients: NDArray[np.int64], *, first_image: NDArray[np.int64], generator: CryptographicGenerator
) -> NDArray[np.int64]:
    """Return one image position for each sampled patient, drawn at random among that patient's images.

    Args:
        patients: positions of patients, int64, shape (sampled,).
        first_image: int64, shape (num_patients + 1,); the images of patient p are first_image[p] to
            first_image[p + 1] − 1, at least one.
    """
    starts, ends = first_image[patients], first_image[patients + 1]
    return starts + generator.integers(ends - starts)


def pick_several_images(
    patients: NDArray[np.int64],
    *,
    first_image: NDArray[np.int64],
    most: int,
    generator: CryptographicGenerator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return *most* distinct image positions for each sampled patient, or all where a patient has fewer.

    Every choice of so many of a patient's images is equally likely.

    Args:
        patients: as for `pick_images`.
        first_image: as for `pick_images`.
        most: at least 1.
        generator: draws a number for each image of the sampled patients.

    Returns:
        Positions of images, and for each the place of its patient in *patients*, increasing; both int64, shape (rows,).
    """
    starts = first_image[patients]
    counts = first_image[patients + 1] - starts
    owner = np.repeat(np.arange(len(patients)), counts)
    rank = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
    shuffled = np.lexsort((generator.uniform(len(owner)), owner))
    chosen = shuffled[rank < most]
    return starts[owner[chosen]] + rank[chosen], owner[chosen]
