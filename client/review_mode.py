"""Of a review: who adds the noise, against whom the promise holds, and how much more noise there is than it needs."""

from collections.abc import Iterator
from math import sqrt

from client.review_sentences import Sentence, counted, plain, warning
from privacy.planning import overshoot
from shared_models.study import Study


def promise_of_mode(study: Study) -> Iterator[Sentence]:
    """Mode, adversary and overshoot of a study with privacy, one sentence each."""
    if study.privacy.mode == "distributed":
        yield from _distributed(study)
    else:
        yield from _local(study)


def _local(study: Study) -> Iterator[Sentence]:
    yield plain(
        'Mode: privacy.mode = "local", where this hospital adds all of the noise by itself, so that the promise would '
        "hold even if the masks failed."
    )
    yield plain(
        "It holds against the server, the other hospitals and everybody who gets the model, also if all of them work "
        "together."
    )
    aggregation = study.aggregation
    factors = (sqrt(aggregation.min_sites_in_sum), sqrt(aggregation.num_sites_max))
    yield _overshoot(study, factors, "of equal size ")


def _distributed(study: Study) -> Iterator[Sentence]:
    aggregation, shares = study.aggregation, study.num_noise_shares
    yield warning(
        'Mode: privacy.mode = "distributed", where the hospitals share the noise, so that the promise is weaker than '
        "under mode “local”: it relies on secure aggregation and on the noise of the other honest hospitals, as this "
        f"hospital's contribution by itself carries {1 / sqrt(shares):.2f} of the noise that is needed."
    )
    others = counted(aggregation.num_colluding, "other hospital")
    yield plain(
        f"It holds against the server together with up to {others}, and against everybody who gets the model, but not "
        "if more hospitals work with the server or leave out their noise, or if the masks fail."
    )
    factors = tuple(
        overshoot(number, least=aggregation.min_sites_in_sum, num_colluding=aggregation.num_colluding)
        for number in (aggregation.min_sites_in_sum, aggregation.num_sites_max)
    )
    yield _overshoot(study, (factors[0], factors[1]), "")


def _overshoot(study: Study, factors: tuple[float, float], which: str) -> Sentence:
    """One sentence for the fewest and the most hospitals that a sum can hold."""
    least, most = study.aggregation.min_sites_in_sum, study.aggregation.num_sites_max
    hospitals = f"{least} hospitals" if least == most else f"{least} to {most} hospitals"
    lowest, highest = (f"{factor:.2f}" for factor in factors)
    times = lowest if least == most else f"{lowest} to {highest}"
    return plain(
        f"Overshoot: with {hospitals} {which}in a sum there is {times} times the noise that the promise would need if "
        "one trusted party had all patients, which costs accuracy, not privacy."
    )
