"""What metrics and the methods of their intervals are called in a report, and what they say.

``{unit}`` stands for whom the study counts: patients, or as it says.
"""

from collections.abc import Mapping

from server.intervals import Method

_WORDS: Mapping[str, tuple[str, str]] = {
    "dice": ("Dice", "how much of mark and mask is in both, mean of those who have the structure"),
    "iou": ("intersection over union", "the same, of what is in one of them at least"),
    "median_dice": ("median Dice", "half of those who have the structure lie below"),
    "below_half": ("Dice below ½", "share of those who have it whose mark is poor; lower is better"),
    "detected": ("found at all", "share of those who have it of whom something of it was marked"),
    "auroc": ("AUROC", "how often a positive {unit} has the higher score of a pair; 0.5 is chance"),
    "average_precision": (
        "average precision",
        "area under the precision-recall curve; the share of positives is chance",
    ),
    "accuracy": (
        "accuracy",
        "share of {unit}s taken for what they are; to call all what most are gives the share of those",
    ),
    "balanced_accuracy": (
        "balanced accuracy",
        "mean of the sensitivities of all kinds; chance is one over their number",
    ),
    "sensitivity": ("sensitivity", "share of positive {unit}s who are found"),
    "specificity": ("specificity", "share of negative {unit}s who are left alone"),
    "ppv": (
        "PPV",
        "positive predictive value: share of positive ones among those taken for positive, in a test like this",
    ),
    "npv": (
        "NPV",
        "negative predictive value: share of negative ones among those taken for negative; likewise",
    ),
    "f1": ("F1", "harmonic mean of sensitivity and PPV"),
    "mcc": ("Matthews' correlation", "of being positive and being taken for it; 0 is chance, 1 perfect"),
    "brier": ("Brier score", "mean square error of the probability; lower is better"),
    "calibration_error": (
        "calibration error",
        "how far predicted and observed shares are apart; lower is better",
    ),
    "loss": ("log loss", "mean, in nats; lower is better"),
}
"""(heading, what it says) of each metric, in the order in which they are shown."""
_OF_MARKS: Mapping[str, tuple[str, str]] = {
    "specificity": ("rightly unmarked", "share of those without the structure of whom nothing was marked"),
    "loss": ("log loss", "mean over all points of the images, in nats; lower is better"),
}


def words_of(unit: str, *, marks: bool) -> dict[str, tuple[str, str]]:
    """(heading, what it says) of each metric.

    Args:
        unit: whom the study counts.
        marks: it is marks that are judged, of which two figures are something else.
    """
    words = {**_WORDS, **_OF_MARKS} if marks else _WORDS
    return {key: (heading, says.replace("{unit}", unit)) for key, (heading, says) in words.items()}


METHODS: Mapping[Method, str] = {
    "wilson": "Wilson",
    "delong": "DeLong, Newcombe",
    "mover": "MOVER",
    "delta": "delta method",
    "bootstrap": "bootstrap",
    "logit": "normal on the logit scale",
    "order": "order statistics",
    "bound": "mean of limits, cautious",
}
"""Names of the methods of intervals."""
