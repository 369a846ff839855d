"""A lower bound on epsilon from one run: canaries that were in or out by coin flips, and guesses which were in.

Source: Steinke, Nasr and Jagielski (2023), "Privacy auditing with one (1) training run", arXiv 2305.08846: theorem 5.2
and corollary 5.4, of which appendix D gives a program.
"""

import math
from functools import partial

import numpy as np
from scipy import stats


def p_value(*, num_canaries: int, num_guesses: int, num_correct: int, epsilon: float, delta: float) -> float:
    """Bound on the probability of so many correct guesses if the run was (epsilon, delta) differentially private.

    With p = e^ε / (1 + e^ε) and B binomial of the guesses with probability p it is, v being the correct ones and m the
    canaries, P[B ≥ v] + 2 m δ · max over i of P[v > B ≥ v − i] / i.

    Args:
        num_canaries: each in the data with probability one half, independently.
        num_guesses: those about which something was said; which ones may depend on the run, their number may not.
        num_correct: of the guesses.
        epsilon: of the claim that is tested.
        delta: of the claim that is tested.

    Raises:
        ValueError: not 0 ≤ num_correct ≤ num_guesses ≤ num_canaries.
    """
    if not 0 <= num_correct <= num_guesses <= num_canaries:
        raise ValueError(
            f"num_correct = {num_correct}, num_guesses = {num_guesses}, num_canaries = {num_canaries}; must not "
            "decrease, and not be negative"
        )
    accuracy = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(stats.binom.sf(num_correct - 1, num_guesses, accuracy))
    if num_correct == 0:
        return 1.0
    below = np.arange(1, num_correct + 1)
    above = stats.binom.cdf(num_correct - 1, num_guesses, accuracy)
    masses = above - stats.binom.cdf(num_correct - 1 - below, num_guesses, accuracy)
    return min(1.0, tail + 2.0 * num_canaries * delta * float(np.max(masses / below)))


def epsilon_bound(
    *, num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float = 0.95
) -> float:
    """Largest epsilon (to 1e-9, from below) that so many correct guesses refute at this confidence; 0 for none."""
    told = partial(p_value, num_canaries=num_canaries, num_guesses=num_guesses, num_correct=num_correct)

    def refuted(epsilon: float) -> bool:
        return told(epsilon=epsilon, delta=delta) < 1.0 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2.0 * high
    while high - low > 1e-9:
        middle = (low + high) / 2.0
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def fewest_correct(
    *, num_canaries: int, num_guesses: int, epsilon: float, delta: float, confidence: float = 0.95
) -> int | None:
    """Fewest correct guesses that refute the claim at this confidence; None where not even all of them do."""
    told = partial(p_value, num_canaries=num_canaries, num_guesses=num_guesses, epsilon=epsilon, delta=delta)

    def refutes(num_correct: int) -> bool:
        return told(num_correct=num_correct) < 1.0 - confidence

    if not refutes(num_guesses):
        return None
    return next(number for number in range(num_guesses + 1) if refutes(number))
