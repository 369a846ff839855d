"""Whether independent events happen with the claimed probability."""

from scipy import stats


def count_interval(trials: int, probability: float, *, false_alarm: float) -> tuple[int, int]:
    """The counts that a binomial distribution gives, but for at most *false_alarm*: half of it on each side.

    Args:
        trials: independent ones.
        probability: of the event in each.
        false_alarm: for this count alone.

    Returns:
        The smallest and the largest count inside.
    """
    tail = false_alarm / 2.0
    lowest = int(stats.binom.ppf(tail, trials, probability))
    highest = int(stats.binom.isf(tail, trials, probability))
    return lowest, highest
