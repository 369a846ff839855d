"""Shamir's secret sharing over the prime field of p = 2^256 − 189.

Source: Shamir, "How to share a secret" (1979). Secrets and coefficients are uniform in [0, p); an element is 32
bytes, big-endian; the holder at position i has the point x = i + 1. One list of Lagrange coefficients serves for all
secrets that the same holders put together.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from privacy.secure_aggregation.refusals import Malformed

PRIME = 2**256 - 189
ELEMENT_BYTES = 32

Randomness: TypeAlias = Callable[[int], bytes]
"""Returns that many uniform bytes; the operating system's in the product."""


def random_element(randomness: Randomness) -> int:
    """Return a uniform element of the field: 32 bytes are drawn until they are below p."""
    while True:
        element = int.from_bytes(randomness(ELEMENT_BYTES), "big")
        if element < PRIME:
            return element


def element_bytes(element: int) -> bytes:
    """The element as 32 bytes, big-endian."""
    return element.to_bytes(ELEMENT_BYTES, "big")


def read_element(raw: bytes) -> int:
    """Return the element that *raw* encodes. Raises Malformed: another length, or not below p."""
    element = int.from_bytes(raw, "big")
    if len(raw) != ELEMENT_BYTES or element >= PRIME:
        raise Malformed("a share is not an element of the field")
    return element


def split(
    secret: int, *, threshold: int, positions: Sequence[int], randomness: Randomness
) -> tuple[int, ...]:
    """Return one share for each holder in *positions*; any *threshold* of them give the secret back, fewer nothing.

    Args:
        secret: in [0, p).
        threshold: 1 to the number of holders.
        positions: of the holders, each at least 0, all different.
        randomness: for the coefficients.
    """
    if not 1 <= threshold <= len(positions) or len(set(positions)) != len(positions):
        raise ValueError(f"threshold = {threshold} does not fit {len(positions)} holders")
    coefficients = [random_element(randomness) for _ in range(threshold - 1)]
    coefficients.reverse()
    shares = []
    for position in positions:
        x, value = position + 1, 0
        for coefficient in coefficients:
            value = (value + coefficient) * x % PRIME
        shares.append((value + secret) % PRIME)
    return tuple(shares)


def lagrange(positions: Sequence[int]) -> tuple[int, ...]:
    """Return the coefficients with which the shares of these holders add up to the secret."""
    points = [position + 1 for position in positions]
    if len(set(points)) != len(points):
        raise ValueError("each holder counts once")
    coefficients = []
    for point in points:
        numerator, denominator = 1, 1
        for other in points:
            if other != point:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - point) % PRIME
        coefficients.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(coefficients)


def combine(coefficients: Sequence[int], shares: Sequence[int]) -> int:
    """Return the secret of *shares*, in the order of the holders that *coefficients* were made for."""
    return sum(map(int.__mul__, coefficients, shares)) % PRIME
