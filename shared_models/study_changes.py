"""What changed from one version of a study to the next, field by field, in words where a word helps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from shared_models.study import Study
from shared_models.tasks.registry import TABLES
from shared_models.visible_text import quoted, visible

Value: TypeAlias = "bool | int | float | str | tuple[int | str, ...] | None"

WORDS: Mapping[str, str] = {
    "name": "name of the study",
    "title": "title",
    "patient": "what a Patient ID stands for",
    "task.kind": "kind of task",
    **{f"task.{key}": words for table in TABLES for key, words in table.words.items()},
    "patients.roles": "how patients are spread over training, validation and test",
    "patients.min_training": "fewest training patients of a hospital",
    "patients.validation_fraction": "share of validation patients",
    "patients.test_fraction": "share of test patients",
    "image.modalities": "kinds of images (DICOM Modality)",
    "image.channels": "colour channels",
    "image.rows": "height of the prepared image",
    "image.columns": "width of the prepared image",
    "image.aspect": "how an image is brought to that shape",
    "image.intensity": "how grey values are scaled",
    "image.low_percentile": "percentile that becomes black",
    "image.high_percentile": "percentile that becomes white",
    "image.window_center": "center of the study's window, in Hounsfield units",
    "image.window_width": "width of the study's window, in Hounsfield units",
    "image.frames": "what becomes of files of several frames",
    "image.orientation": "whether images are turned to the standard orientation",
    "image.spacing": "size of a pixel of the prepared image, in mm",
    "quality.views": "views that are used (ViewPosition)",
    "quality.body_parts": "body parts that are used (BodyPartExamined)",
    "quality.photometric": "kinds of pixel values that are used (PhotometricInterpretation)",
    "quality.unstated": "what becomes of images that name no view or body part",
    "quality.min_rows": "fewest rows of a stored image",
    "quality.min_columns": "fewest columns of a stored image",
    "quality.max_rows": "most rows of a stored image",
    "quality.max_columns": "most columns of a stored image",
    "quality.blank": "what becomes of images of one value only",
    "quality.max_saturated_share": "largest share of an image at its lowest or highest value",
    "quality.burned_in": "what becomes of images with identifying text in their pixels",
    "quality.shared_pixels": "what becomes of images that stand under several Patient IDs",
    "quality.min_patients_per_class": "fewest training patients of each class of a hospital",
    "quality.max_unusable_share": "largest share of a hospital's files that may be left out",
    "image.depth": "slices of the prepared volume",
    "image.slice_spacing": "distance of the slices of the prepared volume, in mm",
    "model.architecture": "architecture of the model",
    "model.width": "width of the model",
    "model.weight_standardisation": "weights of the convolutions standardised",
    "model.stem": "first layers of the model",
    "model.levels": "levels of the U-Net",
    "model.scales": "scales of the wavelets",
    "model.angles": "angles of the wavelets",
    "model.dropout": "share of features that are left out at random",
    "model.trainable": "part of the model that is trained",
    "model.last_blocks": "blocks that are trained beside the last layer",
    "model.seed": "seed of the initial weights",
    "model.weights.file": "file of the initial weights",
    "model.weights.sha256": "SHA-256 of that file",
    "model.weights.origin": "what those weights were trained on",
    "training.num_rounds": "rounds",
    "training.local_steps": "steps in each round",
    "training.sample_rate": "probability with which each patient is in a step",
    "training.learning_rate": "learning rate",
    "training.momentum": "momentum",
    "training.weight_decay": "weight decay",
    "training.positive_weight": "weight of a positive image in the loss",
    "training.images_per_patient": "most images of a patient in a step",
    "training.augmentations": "copies of each image in a step",
    "training.augmentation.flip": "axes along which images are mirrored at random",
    "training.augmentation.rotation": "largest rotation, in degrees",
    "training.augmentation.shift": "largest shift, as a share of the image",
    "training.augmentation.scale": "largest change of size",
    "training.augmentation.shear": "largest shear, in degrees",
    "training.augmentation.brightness": "largest change of brightness",
    "training.augmentation.contrast": "largest change of contrast",
    "training.augmentation.gamma": "largest change of the exponent of levels",
    "training.augmentation.noise": "largest noise on each pixel",
    "training.optimizer": "optimizer",
    "training.schedule": "course of the learning rate",
    "training.plateau_factor": "factor of the learning rate on a plateau",
    "training.plateau_patience": "validations that make a plateau",
    "training.early_stopping": "validations without progress that end the run",
    "training.warmup_rounds": "rounds over which the learning rate rises",
    "training.ema_decay": "memory of the moving average of the weights",
    "privacy.mode": "mode of differential privacy",
    "privacy.epsilon": "ε of training",
    "privacy.delta": "δ",
    "privacy.num_patients": "training patients for whom δ is taken",
    "privacy.max_grad_norm": "bound on one patient's gradient",
    "evaluation.validation_rounds": "rounds whose model is validated",
    "evaluation.num_bins": "bins of the score histogram",
    "evaluation.unnoised": "evaluation without noise",
    "evaluation.epsilon": "ε of evaluation",
    "evaluation.subgroups": "attributes by which groups of test patients are evaluated",
    "evaluation.age_bands": "ages at which a group by age begins",
    "evaluation.vendors": "makers of scanners with a group of their own",
    "evaluation.min_subgroup": "fewest patients of a group that is told of",
    "evaluation.operating_points.name": "operating points",
    "evaluation.operating_points.threshold": "threshold of the operating point",
    "evaluation.operating_points.sensitivity": "sensitivity that is wanted of the operating point",
    "evaluation.operating_points.specificity": "specificity that is wanted of the operating point",
    "aggregation.weights": "weight of a hospital in the mean",
    "aggregation.server_optimizer": "optimizer of the server",
    "aggregation.server_learning_rate": "learning rate of the server",
    "aggregation.server_momentum": "momentum of the server",
    "aggregation.num_sites_max": "most hospitals in a sum",
    "aggregation.min_cohort": "fewest hospitals in a sum",
    "aggregation.max_patients": "patients that count for the weight at most",
    "aggregation.update_bound": "bound on each entry of an update",
    "aggregation.round_timeout_seconds": "seconds that a round may take",
    "aggregation.threshold": "hospitals that it takes to open a sum",
    "aggregation.num_colluding": "hospitals that may work together with the server without learning more",
    "aggregation.rounds_per_batch": "rounds whose masks are prepared at once",
    "aggregation.max_burned_rounds": "failed rounds in a row before the run stops",
    "aggregation.step_timeout_seconds": "seconds for each small exchange",
}

WEAKER = "WEAKENS PROTECTION"
OTHER_UNIT = "CHANGES WHO IS PROTECTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One value that is another in the new version.

    Attributes:
        key: as in ``study.toml``, dotted.
        words: what the key means.
        old, new: the values, ready to be shown.
        note: `WEAKER`, `OTHER_UNIT`, or empty.
    """

    key: str
    words: str
    old: str
    new: str
    note: str

    @property
    def sentence(self) -> str:
        """One line."""
        note = f" – {self.note}" if self.note else ""
        return f"{self.words} ({self.key}): {self.old} → {self.new}{note}"


def changes(old: Study, new: Study) -> tuple[Change, ...]:
    """Every value in which *new* differs from *old*, in the order of the file; empty where the hashes are equal.

    A value that one of them does not have, as that of a class that is new, is shown as none.
    """
    before, after = _values(old), _values(new)
    return tuple(
        Change(
            key=place.key,
            words=place.words,
            old=_shown(before.get(place)),
            new=_shown(after.get(place)),
            note=_note(place.key, before.get(place), after.get(place)),
        )
        for place in {**after, **before}
        if before.get(place) != after.get(place)
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value stands: its key and, in a list of tables, the name of the table."""

    key: str
    entry: str | None = None

    @property
    def words(self) -> str:
        words = WORDS.get(self.key, self.key)
        return words if self.entry is None else f"{words} {quoted(self.entry)}"


def _values(study: Study) -> dict[_Place, Value]:
    found: dict[_Place, Value] = {}
    for name, value in study.model_dump().items():
        if not isinstance(value, dict):
            found[_Place(name)] = value
            continue
        for key, inner in value.items():
            if isinstance(inner, tuple) and f"{name}.{key}.name" in WORDS:
                found |= _of_entries(f"{name}.{key}", inner)
            elif inner is None and f"{name}.{key}" not in WORDS:
                continue  # a table that is not there
            elif isinstance(inner, dict):
                found |= {_Place(f"{name}.{key}.{field}"): of_field for field, of_field in inner.items()}
            else:
                found[_Place(f"{name}.{key}")] = inner
    return found


def _of_entries(key: str, entries: Sequence[Mapping[str, Value]]) -> dict[_Place, Value]:
    """Of a list of tables that have names."""
    names = tuple(str(entry["name"]) for entry in entries)
    return {
        _Place(f"{key}.name"): names,
        **{
            _Place(f"{key}.{field}", name): value
            for name, entry in zip(names, entries, strict=True)
            for field, value in entry.items()
            if field != "name"
        },
    }


def _shown(value: Value) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(_shown(entry) for entry in value) or "none"
    return visible(value) if isinstance(value, str) else repr(value)


def _lower(old: Value, new: Value) -> bool:
    return isinstance(old, int | float) and isinstance(new, int | float) and new < old


def _higher(old: Value, new: Value) -> bool:
    return _lower(new, old)


_PROTECTION: Sequence[Value] = ("none", "distributed", "local")
_LEFT_OUT: Sequence[Value] = ("use", "refuse", "require-no")
_WEAKER: Mapping[str, Callable[[Value, Value], bool]] = {
    "privacy.mode": lambda old, new: _PROTECTION.index(new) < _PROTECTION.index(old),
    "quality.burned_in": lambda old, new: _LEFT_OUT.index(new) < _LEFT_OUT.index(old),
    "quality.shared_pixels": lambda old, new: _LEFT_OUT.index(new) < _LEFT_OUT.index(old),
    "privacy.epsilon": _higher,
    "privacy.delta": _higher,
    "evaluation.epsilon": _higher,
    "evaluation.unnoised": _higher,
    "evaluation.min_subgroup": _lower,
    "aggregation.min_cohort": _lower,
    "aggregation.threshold": _lower,
    "aggregation.num_colluding": _lower,
}


def _note(key: str, old: Value, new: Value) -> str:
    if key == "patient":
        return OTHER_UNIT
    return WEAKER if key in _WEAKER and _WEAKER[key](old, new) else ""
