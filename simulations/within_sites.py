"""AUROC among the patients of the same site: what is left where a model cannot profit from telling sites apart."""

from collections.abc import Mapping, Sequence

from shared_models.tasks.curves import Pair
from shared_models.tasks.histograms import auroc, mean_of_known


def auroc_within(sites: Sequence[Mapping[str, Pair]]) -> float | None:
    """The share of pairs in the right order, of pairs of patients who are at the same site; of parts the mean.

    The AUROC of all patients together has pairs across sites too. Where sites differ in how many of their patients are
    positive, a model that recognises the site orders those well and knows nothing of the disease.

    Args:
        sites: the pairs of histograms of each, by part: the question, or each class or finding.

    Returns:
        None where no site has patients of both kinds.
    """
    names = dict.fromkeys(name for site in sites for name in site)
    return mean_of_known([_of_part([site[name] for site in sites if name in site]) for name in names])


def _of_part(sites: Sequence[Pair]) -> float | None:
    right = num_pairs = 0.0
    for pair in sites:
        value = auroc(pair.negative, pair.positive, cut=True)
        if value is not None:
            own = float(pair.negative.sum() * pair.positive.sum())
            right, num_pairs = right + own * value, num_pairs + own
    return right / num_pairs if num_pairs else None
