"""Settings that other systems have and a study has not: one patient's gradient would depend on other patients."""

_WEIGHTS = (
    "weights are constants of the study (training.positive_weight, or weight with each class or finding in [task]); "
    "computed from a hospital's patients they would make each patient's gradient depend on the others"
)
_MIXED = (
    "it would mix images of different patients into one, and no clipping bounds what one of them contributes"
)
_SAMPLED = (
    "each patient is sampled by itself, with the same probability (training.sample_rate); a sampler that balances "
    "makes one patient's chance depend on the others. Take constant weights instead"
)
_NORMALISED = (
    "networks have GroupNorm and nothing else: batch statistics would make one patient's gradient depend on the others "
    "of a batch"
)
_SCALED = (
    "each image is scaled by itself (image.intensity); mean and deviation of a hospital's images would be statistics "
    "of its patients, and make each gradient depend on all of them"
)
_REASONS = {
    **dict.fromkeys(("class_weight", "class_weights", "pos_weight", "balance_classes"), _WEIGHTS),
    **dict.fromkeys(("mixup", "cutmix", "mix_up"), _MIXED),
    **dict.fromkeys(("sampler", "balanced_sampler", "oversampling", "weighted_sampler"), _SAMPLED),
    **dict.fromkeys(("norm", "normalisation", "normalization", "batch_norm", "batchnorm"), _NORMALISED),
    **dict.fromkeys(("mean", "std", "standardise", "standardize"), _SCALED),
}
_COMPUTED = ("balanced", "auto", "inverse-frequency")


def why_refused(key: str, value: object) -> str | None:
    """Why a study cannot have this key, or this value of a key that it has; None where nothing is to be said.

    Args:
        key: the last part of its name, as it stands in the file.
        value: as it stands there.
    """
    if key in ("weight", "positive_weight") and value in _COMPUTED:
        return _WEIGHTS
    return _REASONS.get(key.lower())
