"""How alike two pictures look."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Picture = NDArray[np.float64]
_FIRST, _SECOND = 0.01**2, 0.03**2
_WIDTH, _TRUNCATE = 1.5, 3.5


def structural_similarity(one: Picture, other: Picture) -> float:
    """Mean structural similarity (SSIM) of two pictures, shape (rows, columns), in [0, 1]: 1 where they are the same.

    Source: Wang, Bovik, Sheikh and Simoncelli (2004), "Image quality assessment", with their Gaussian window of 11 × 11
    pixels and their constants. A window at the edge is filled by mirroring.
    """
    mean_one, mean_other = _local(one), _local(other)
    variances = _local(one**2) - mean_one**2 + _local(other**2) - mean_other**2
    covariance = _local(one * other) - mean_one * mean_other
    luminance = (2.0 * mean_one * mean_other + _FIRST) / (mean_one**2 + mean_other**2 + _FIRST)
    return float(np.mean(luminance * (2.0 * covariance + _SECOND) / (variances + _SECOND)))


def _local(picture: Picture) -> Picture:
    smooth: Picture = ndimage.gaussian_filter(picture, _WIDTH, truncate=_TRUNCATE, mode="mirror")
    return smooth
