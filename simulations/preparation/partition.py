"""Assigning the patients of a data set without sites to hospitals.

A partition is first a table of shares: for each hospital and label, which part of that label's patients it gets.
The table is then applied to every role (train, validation, test) alike, so that each hospital's test patients are
like its training patients.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Shares = NDArray[np.float64]
_MAX_DRAWS = 200


class PartitionError(ValueError):
    """The patients cannot be assigned as asked."""


def iid_shares(num_hospitals: int, num_labels: int) -> Shares:
    """Every hospital the same part of every label. Returns float64, shape (num_hospitals, num_labels)."""
    return np.full((num_hospitals, num_labels), 1.0 / num_hospitals)


def quantity_shares(quantities: Sequence[float], num_labels: int) -> Shares:
    """Hospitals of different size with the same mix of labels.

    Args:
        quantities: positive, in any unit; hospital h gets ``quantities[h] / sum(quantities)`` of every label.
        num_labels: number of labels.

    Raises:
        PartitionError: a quantity is not positive.
    """
    sizes = np.asarray(quantities, dtype=np.float64)
    if not np.all(sizes > 0):
        raise PartitionError(f"shares are {list(quantities)}; every hospital's share must be positive")
    return np.repeat((sizes / sizes.sum())[:, None], num_labels, axis=1)


def drawn_quantity_shares(
    num_hospitals: int, num_labels: int, alpha: float, generator: np.random.Generator
) -> Shares:
    """Hospital sizes drawn from a symmetric Dirichlet: small *alpha*, very different sizes."""
    return np.repeat(_dirichlet(alpha, num_hospitals, generator)[:, None], num_labels, axis=1)


def dirichlet_shares(
    num_hospitals: int, num_labels: int, alpha: float, generator: np.random.Generator
) -> Shares:
    """Every label spread over the hospitals by a Dirichlet draw of its own: small *alpha*, very different mixes.

    Source: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification" (2019), in the form that draws per label.
    """
    return np.stack([_dirichlet(alpha, num_hospitals, generator) for _ in range(num_labels)], axis=1)


def missing_label_shares(missing: Sequence[int | None], num_labels: int) -> Shares:
    """Hospital h lacks label ``missing[h]`` (None: lacks none); the others share that label evenly.

    Raises:
        PartitionError: some label would be nobody's.
    """
    present = np.ones((len(missing), num_labels))
    for hospital, label in enumerate(missing):
        if label is not None:
            present[hospital, label] = 0.0
    if orphans := [int(label) for label in np.flatnonzero(present.sum(axis=0) == 0)]:
        raise PartitionError(
            f"label number {orphans[0]} is missing at every hospital; leave it to at least one"
        )
    return np.asarray(present / present.sum(axis=0), dtype=np.float64)


def assign(
    labels: NDArray[np.int64], roles: NDArray[np.int64], shares: Shares, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Assign every patient to exactly one hospital.

    Args:
        labels: label number of each patient, shape (num_patients,).
        roles: role number of each patient, shape (num_patients,).
        shares: shape (num_hospitals, num_labels); every column sums to 1.
        generator: decides who goes where.

    Returns:
        int64, shape (num_patients,): the hospital of each patient. Of the patients of one role and label,
        hospital h gets ``shares[h, label]`` of them, rounded up or down.
    """
    hospitals = np.zeros(len(labels), dtype=np.int64)
    for role in np.unique(roles):
        for label in range(shares.shape[1]):
            members = generator.permutation(np.flatnonzero((labels == label) & (roles == role)))
            counts = _whole_numbers(shares[:, label], len(members), generator)
            hospitals[members] = np.repeat(np.arange(len(counts)), counts)
    return hospitals


def assign_with_minimum(
    labels: NDArray[np.int64],
    roles: NDArray[np.int64],
    draw: Callable[[], Shares],
    generator: np.random.Generator,
    *,
    min_patients: int,
) -> NDArray[np.int64]:
    """Assign with shares drawn again until every hospital has at least *min_patients*.

    Raises:
        PartitionError: 200 draws did not reach the minimum; the message says how far the last one came.
    """
    smallest = 0
    for _ in range(_MAX_DRAWS):
        shares = draw()
        hospitals = assign(labels, roles, shares, generator)
        smallest = int(np.bincount(hospitals, minlength=len(shares)).min())
        if smallest >= min_patients:
            return hospitals
    raise PartitionError(
        f"the smallest hospital gets {smallest} of {len(labels)} patients, fewer than min_patients = {min_patients}; "
        "ask for fewer hospitals, more even shares (a larger alpha), or a smaller minimum"
    )


def _dirichlet(alpha: float, num_hospitals: int, generator: np.random.Generator) -> Shares:
    """One Dirichlet draw; where a tiny alpha rounds all weights to zero, one hospital gets everything."""
    weights = generator.gamma(alpha, size=num_hospitals)
    if not math.isfinite(total := float(weights.sum())) or total <= 0.0:
        weights = np.zeros(num_hospitals)
        weights[generator.integers(num_hospitals)] = total = 1.0
    return np.asarray(weights / total, dtype=np.float64)


def _whole_numbers(shares: Shares, total: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Split *total* by *shares* into whole numbers: floors, and the rest to the largest remainders, ties drawn."""
    exact = shares * total
    counts = np.floor(exact + 1e-9).astype(np.int64)
    order = np.lexsort((generator.random(len(shares)), -(exact - counts).round(9)))
    counts[order[: total - int(counts.sum())]] += 1
    return counts
