"""Which of several settings a study should have, by validation patients alone: the one-standard-error rule.

The best figure on a few hundred validation patients is best by chance among those that are about as good. Of all
that are within one standard error of the best, the most restrained is taken: the one whose weights can move least.

Sources: Breiman, Friedman, Olshen and Stone (1984), "Classification and regression trees", section 3.4.3; Hastie,
Tibshirani and Friedman (2009), "The elements of statistical learning", section 7.10.1. Hanley and McNeil (1982), "The
meaning and use of the area under a receiver operating characteristic curve", for its standard error.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from shared_models.study import Study
from simulations.modes import Trained, study_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The models of one setting, of one mode and epsilon.

    Attributes:
        models: at least one.
        reach: bound on how far the weights can move from where they begin, in L2 norm; without privacy, in gradients.
    """

    models: tuple[Trained, ...]
    reach: float

    def mean(self, metric: str) -> float:
        """Over the models; 0 where a metric is not there."""
        return statistics.fmean(one.metrics[metric] or 0.0 for one in self.models)

    @classmethod
    def of(cls, models: Sequence[Trained], base: Study) -> "Candidate":
        """With the reach that *base* has with this setting: rounds × learning rate × clipping bound."""
        study = study_of(base, models[0].job)
        training, bound = study.training, study.privacy.max_grad_norm or 1.0
        rates = sum(training.learning_rate_in(number) for number in range(1, training.num_rounds + 1))
        return cls(models=tuple(models), reach=rates * training.local_steps * bound)


def chosen(candidates: Sequence[Candidate], *, num_negative: int, num_positive: int) -> Candidate:
    """Return the candidate with the least reach among those within one standard error of the best AUROC.

    Of several with the same reach, the one with the best balanced accuracy.

    Args:
        candidates: at least one, evaluated on the same validation patients.
        num_negative: validation patients of the negative class.
        num_positive: of the positive class.
    """
    best = max(candidate.mean("auroc") for candidate in candidates)
    least = best - auroc_error(best, num_negative=num_negative, num_positive=num_positive)
    enough = [candidate for candidate in candidates if candidate.mean("auroc") >= least]
    return min(enough, key=lambda candidate: (candidate.reach, -candidate.mean("balanced_accuracy")))


def auroc_error(auroc: float, *, num_negative: int, num_positive: int) -> float:
    """Standard error of an AUROC over which patients there are.

    Args:
        auroc: in [0, 1].
        num_negative: patients of the negative class, at least 1.
        num_positive: of the positive class, at least 1.

    Source: Hanley and McNeil (1982), equation 1 with the approximations of Q1 and Q2.
    """
    two_positive, two_negative = auroc / (2.0 - auroc), 2.0 * auroc**2 / (1.0 + auroc)
    variance = (
        auroc * (1.0 - auroc)
        + (num_positive - 1) * (two_positive - auroc**2)
        + (num_negative - 1) * (two_negative - auroc**2)
    )
    return math.sqrt(max(0.0, variance) / (num_positive * num_negative))
