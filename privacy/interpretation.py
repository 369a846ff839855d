"""What ε and δ mean for one patient: how well anybody can guess whether the patient took part."""

import math


def best_guess(*, epsilon: float, delta: float) -> float:
    """Largest probability with which anybody guesses right whether a patient took part, both being as likely before.

    Whatever else the guesser knows, and however the guess is made; 0.5 is what guessing blindly gives.

    Args:
        epsilon: ≥ 0.
        delta: in [0, 1].

    Source: of all tests that (ε, δ)-differential privacy allows, errors of both kinds taken equal, the best is right
    with probability (e^ε + δ) / (1 + e^ε), which is below e^ε / (1 + e^ε) + δ. Kairouz, Oh, Viswanath (2015), *The
    composition theorem for differential privacy*, section 2.
    """
    return 1.0 - (1.0 - delta) * _logistic(-epsilon)


def _logistic(x: float) -> float:
    return math.exp(x) / (1.0 + math.exp(x))
