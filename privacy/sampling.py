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
