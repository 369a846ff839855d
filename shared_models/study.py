"""``study.toml``: everything that all participants of a study must agree on.

Every field here is public: it is known to all sites, to the server and to whoever reads the report. A patient
count, a path, a seed of a site's randomness or a per-site metric is never a field of a study.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from shared_models.augmentation import Augmentation
from shared_models.catalogue import CATALOGUE, OWN_KEYS, having, in_quotes, num_blocks, smallest_side
from shared_models.configuration import Frozen, read_toml
from shared_models.operating_points import OperatingPoint
from shared_models.quality import Quality
from shared_models.subgroups import Attribute
from shared_models.tasks.registry import AnyTable
from shared_models.tasks.task import Name

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
UPDATE_BOUND = 1.0
MOST_VOXELS = 2**24
"""Of a prepared volume: 64 MiB."""


def _increasing(values: tuple[int, ...]) -> tuple[int, ...]:
    if any(later <= earlier for earlier, later in zip(values, values[1:], strict=False)):
        raise ValueError("must be strictly increasing")
    return values


class Patients(Frozen):
    """How patients get their role: by keyed hash, or from a column ``role`` of the labels file.

    A site with fewer than ``min_training`` training patients takes no part; a noised count below it is raised to
    it.
    """

    roles: Literal["hash", "column"]
    min_training: int = Field(ge=1)
    validation_fraction: Fraction = 0.15
    test_fraction: Fraction = 0.2

    @model_validator(mode="after")
    def _room_for_training(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError("validation_fraction + test_fraction must stay below 1 so that patients train")
        return self


class Image(Frozen):
    """How an image becomes a tensor of shape (channels, rows, columns) in [0, 1].

    ``window_center`` and ``window_width`` are in Hounsfield units and belong to ``intensity = "hounsfield"``.
    ``spacing`` is in mm: with it a pixel of the tensor has this size, and ``aspect`` has nothing to say.

    With ``depth`` an image is a whole series of slices, and the tensor has shape (1, depth, rows, columns): along the
    patient's axes, towards the head, the back and the left, ``slice_spacing`` mm from slice to slice.
    """

    modalities: tuple[str, ...] = Field(min_length=1, strict=False)
    channels: Literal[1, 3]
    rows: int = Field(ge=8, le=1024)
    columns: int = Field(ge=8, le=1024)
    aspect: Literal["pad", "crop", "stretch"] = "pad"
    intensity: Literal["window", "percentiles", "full-range", "hounsfield"] = "window"
    low_percentile: float = Field(default=0.5, ge=0.0, lt=50.0)
    high_percentile: float = Field(default=99.5, gt=50.0, le=100.0)
    window_center: float | None = Field(default=None, ge=-10_000.0, le=10_000.0)
    window_width: float | None = Field(default=None, gt=1.0, le=20_000.0)
    frames: Literal["refuse", "middle"] = "refuse"
    orientation: Literal["as-stored", "standard"] = "as-stored"
    spacing: float | None = Field(default=None, ge=0.001, le=100.0)
    depth: int | None = Field(default=None, ge=8, le=512)
    slice_spacing: float | None = Field(default=None, ge=0.001, le=100.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a prepared image: (channels, rows, columns), or (1, depth, rows, columns)."""
        size = (self.rows, self.columns)
        return (self.channels, *size) if self.depth is None else (self.channels, self.depth, *size)

    @property
    def voxel(self) -> tuple[float, ...] | None:
        """Size of a voxel along each axis in mm; None of plane images, whose pixels are taken as square."""
        if self.slice_spacing is None or self.spacing is None:
            return None
        return self.slice_spacing, self.spacing, self.spacing

    @model_validator(mode="after")
    def _volume(self) -> Self:
        if self.depth is None:
            if self.slice_spacing is not None:
                raise ValueError(
                    "slice_spacing would change nothing: only volumes have it; set depth or leave it out"
                )
            return self
        if missing := [name for name in ("spacing", "slice_spacing") if getattr(self, name) is None]:
            raise ValueError(f"depth makes volumes, which need {' and '.join(missing)}, in mm")
        if self.channels != 1:
            raise ValueError("depth makes volumes, which are grey: set channels = 1")
        if self.intensity not in ("hounsfield", "percentiles"):
            raise ValueError(
                f'intensity = "{self.intensity}" differs from slice to slice: of a volume it must be "hounsfield" or '
                '"percentiles"'
            )
        if useless := [
            name
            for name in ("frames", "orientation")
            if getattr(self, name) != type(self).model_fields[name].default
        ]:
            raise ValueError(
                f"{' and '.join(useless)} would change nothing: with depth all frames are slices, and each volume lies "
                "along the patient's axes; leave it out"
            )
        if (voxels := self.depth * self.rows * self.columns) > MOST_VOXELS:
            raise ValueError(f"depth × rows × columns is {voxels}; must be at most {MOST_VOXELS}")
        return self

    @model_validator(mode="after")
    def _hounsfield(self) -> Self:
        given = [name for name in ("window_center", "window_width") if getattr(self, name) is not None]
        if self.intensity != "hounsfield":
            if given:
                raise ValueError(
                    f'{" and ".join(given)} would change nothing: only intensity = "hounsfield" has that; leave it out'
                )
            return self
        if len(given) < 2:
            raise ValueError(
                'intensity = "hounsfield" needs window_center and window_width, in Hounsfield units'
            )
        if self.channels != 1 or set(self.modalities) != {"CT"}:
            raise ValueError('intensity = "hounsfield" needs channels = 1 and modalities = ["CT"]')
        return self

    @model_validator(mode="after")
    def _own_size(self) -> Self:
        if self.spacing is not None and self.aspect != "pad":
            raise ValueError(
                f'aspect = "{self.aspect}" would change nothing: with spacing the middle of each image is cut out or '
                "padded to the size; leave it out"
            )
        return self


def _known(architecture: str) -> str:
    if architecture not in CATALOGUE:
        raise ValueError(f"must be one of {in_quotes(CATALOGUE)}")
    return architecture


class Weights(Frozen):
    """A file of initial weights that every participant has: known by its hash, public as the study is.

    ``origin`` says what they were trained on, for those who decide at a hospital.
    """

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    origin: str = Field(min_length=1, max_length=200)


class Model(Frozen):
    """The shared network, one of `shared_models.catalogue`. ``seed`` fixes the initial weights, which are public.

    Which of the other keys there are depends on the architecture. ``trainable``: all weights, those of the last
    ``last_blocks`` blocks and the head, or those of the head; the others stay as they were. Of ``scattering`` nothing
    but the head has weights. With ``weights`` training begins with a file's.
    """

    architecture: Annotated[str, AfterValidator(_known)]
    width: int = Field(default=16, ge=8, le=256, multiple_of=8)
    weight_standardisation: bool = False
    stem: Literal["7x7", "3x3"] = "7x7"
    levels: int = Field(default=4, ge=2, le=6)
    scales: int = Field(default=2, ge=1, le=4)
    angles: int = Field(default=8, ge=4, le=16)
    dropout: float = Field(default=0.0, ge=0.0, le=0.9)
    trainable: Literal["all", "last-block", "head"] = "all"
    last_blocks: int = Field(default=1, ge=1, le=16)
    seed: int = Field(default=0, ge=0, lt=2**31)
    weights: Weights | None = None

    @model_validator(mode="before")
    @classmethod
    def _width_as_published(cls, values: Any) -> Any:
        if isinstance(values, dict) and "width" not in values and values.get("architecture") in CATALOGUE:
            return {**values, "width": CATALOGUE[values["architecture"]].width}
        return values

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        there = CATALOGUE[self.architecture].keys
        fields = type(self).model_fields
        wrong = [key for key in OWN_KEYS if key not in there and getattr(self, key) != fields[key].default]
        if wrong:
            raise ValueError(
                f'{" and ".join(wrong)} would change nothing with "{self.architecture}": {wrong[0]} is of '
                f"{in_quotes(having(wrong[0]))}; leave it out"
            )
        if self.trainable != "last-block" and self.last_blocks != 1:
            raise ValueError(
                f'last_blocks = {self.last_blocks} would change nothing: set trainable = "last-block", or leave it out'
            )
        most = num_blocks(self.architecture, levels=self.levels)
        if self.trainable == "last-block" and self.last_blocks > most:
            raise ValueError(
                f"last_blocks = {self.last_blocks}, and {self.architecture} has {most} blocks; lower it, or set "
                'trainable = "all"'
            )
        return self

    @property
    def smallest_side(self) -> int:
        """Fewest rows, columns and slices of an image."""
        return smallest_side(self.architecture, scales=self.scales, levels=self.levels, stem=self.stem)


class Training(Frozen):
    """One round is ``local_steps`` steps at each site; each step samples patients with rate ``sample_rate``.

    Steps are made with ``optimizer``, ``momentum`` and ``weight_decay``: by each site, whose optimizer begins anew in
    each round, or, under ``privacy.mode = "distributed"``, where a round is one step over all sites, by the server.
    The learning rate, that of the server where it has one of its own, rises in a straight line over ``warmup_rounds``
    and then follows ``schedule``: down to zero behind the last round, or times ``plateau_factor`` after
    ``plateau_patience`` validations in a row that were no better than the best. With ``ema_decay`` above 0 the model
    that is evaluated and kept is the exponential moving average of the global weights after each round. With
    ``early_stopping`` the run ends after so many validations in a row that were no better, and the model that validated
    best is tested and kept.

    A sampled patient contributes the mean gradient over up to ``images_per_patient`` images, drawn at random, each in
    ``augmentations`` copies that are altered at random independently of each other, as ``augmentation`` says.
    """

    num_rounds: int = Field(ge=1, le=10_000)
    local_steps: int = Field(ge=1, le=10_000)
    sample_rate: float = Field(gt=0.0, le=1.0)
    learning_rate: float = Field(gt=0.0)
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    positive_weight: float = Field(default=1.0, gt=0.0)
    images_per_patient: int = Field(default=1, ge=1, le=1000)
    augmentations: int = Field(default=1, ge=1, le=100)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    schedule: Literal["constant", "linear", "cosine", "plateau"] = "constant"
    plateau_factor: float = Field(default=0.5, gt=0.0, lt=1.0)
    plateau_patience: int = Field(default=1, ge=1, le=1000)
    warmup_rounds: int = Field(default=0, ge=0, le=10_000)
    ema_decay: float = Field(default=0.0, ge=0.0, lt=1.0)
    early_stopping: int | None = Field(default=None, ge=1, le=1000)
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _belong(self) -> Self:
        given = [
            name
            for name in ("plateau_factor", "plateau_patience")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if given and self.schedule != "plateau":
            raise ValueError(
                f'{" and ".join(given)} would change nothing: set schedule = "plateau", or leave it out'
            )
        if self.optimizer != "sgd" and self.momentum:
            raise ValueError(f'optimizer = "{self.optimizer}" has its own momentum; leave momentum out')
        return self

    @model_validator(mode="after")
    def _copies_differ(self) -> Self:
        if self.augmentations > 1 and not self.augmentation.alters:
            raise ValueError(
                f"augmentations = {self.augmentations} needs [training.augmentation]; without it all copies are the "
                "same"
            )
        return self

    @property
    def heeds_validations(self) -> bool:
        """Whether what validations say decides anything."""
        return self.schedule == "plateau" or self.early_stopping is not None

    @property
    def rows_per_patient(self) -> int:
        """Most images and copies of images that a patient has in a step."""
        return self.images_per_patient * self.augmentations

    def learning_rate_in(self, number: int, *, reductions: int = 0) -> float:
        """The learning rate of round *number*, from 1, after so many *reductions* on a plateau."""
        return self.scheduled(self.learning_rate, number, reductions=reductions)

    def scheduled(self, rate: float, number: int, *, reductions: int = 0) -> float:
        """What the schedule makes of *rate* in round *number*, from 1, after so many *reductions* on a plateau."""
        if self.schedule == "plateau":
            rising = min(1.0, number / self.warmup_rounds) if self.warmup_rounds else 1.0
            return rate * rising * float(self.plateau_factor**reductions)
        if number <= self.warmup_rounds:
            return rate * number / self.warmup_rounds
        share = (number - 1 - self.warmup_rounds) / max(1, self.num_rounds - self.warmup_rounds)
        left = {"constant": 1.0, "linear": 1.0 - share, "cosine": (1.0 + math.cos(math.pi * share)) / 2.0}
        return rate * left[self.schedule]


_PROMISE = ("epsilon", "delta", "num_patients", "max_grad_norm")


def largest_delta(num_patients: int) -> float:
    """1 / N^1.1: above it, delta by itself would allow to give a whole patient away now and then.

    A mechanism that publishes each patient with probability δ has (0, δ) and gives away δ N patients; δ must be well
    below 1 / N.

    Source: Dwork, Roth (2014), "The algorithmic foundations of differential privacy", section 2.3; the exponent 1.1,
    for "well below", is a convention.
    """
    return float(num_patients**-1.1)


class Privacy(Frozen):
    """Patient-level differential privacy of training. What decides privacy has no default.

    ``local``: each site's update has all the noise by itself. ``distributed``: the sum over sites has, with a share
    from each; that promise rests on secure aggregation and on the sites that do not collude.

    ``num_patients`` is how many training patients the sites have together at most: a constant that the consortium
    agrees on, never a count of what is there. δ is judged by it, and nothing else uses it.
    """

    mode: Literal["none", "local", "distributed"]
    epsilon: float | None = Field(default=None, gt=0.0, le=100.0)
    delta: float | None = Field(default=None, gt=0.0, lt=0.1)
    num_patients: int | None = Field(default=None, ge=2)
    max_grad_norm: float | None = Field(default=None, gt=0.0)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = [name for name in _PROMISE if getattr(self, name) is not None]
        if self.mode == "none" and given:
            raise ValueError(f'mode "none" protects nothing: remove {", ".join(given)}, or set another mode')
        missing = [name for name in _PROMISE if name not in given]
        if self.mode != "none" and missing:
            raise ValueError(f'mode "{self.mode}" needs {", ".join(missing)}; privacy has no defaults')
        return self

    @model_validator(mode="after")
    def _small_delta(self) -> Self:
        if self.delta is None or self.num_patients is None:
            return self
        if self.delta > (largest := largest_delta(self.num_patients)):
            raise ValueError(
                f"delta = {self.delta:g} is too large for num_patients = {self.num_patients:,}: a whole patient "
                f"could be given away now and then; take 1/{self.num_patients:,}^1.1 = {largest:.2g} at most"
            )
        return self


class Evaluation(Frozen):
    """When the shared model is evaluated, and what validation and test patients are promised.

    ``epsilon`` is what one validation patient loses over all validations, and one test patient in the final
    test. Without noise, ``unnoised`` must say so: those patients then have no differential privacy.

    With ``subgroups`` the final test is also evaluated for the patients of each group; groups with fewer than
    ``min_subgroup`` patients are not told of. ``vendors`` are beginnings of Manufacturer (0008,0070).

    ``operating_points`` cost nothing: they are read off the same sums. Of a target the threshold comes from the last
    validation, so that there has to be one.
    """

    validation_rounds: Annotated[tuple[int, ...], AfterValidator(_increasing)] = Field(
        default=(), strict=False
    )
    num_bins: int = Field(ge=2, le=2000, multiple_of=2)
    unnoised: bool = False
    epsilon: float | None = Field(default=None, gt=0.0, le=100.0)
    operating_points: tuple[OperatingPoint, ...] = Field(default=(), max_length=8, strict=False)
    subgroups: tuple[Attribute, ...] = Field(default=(), strict=False)
    age_bands: Annotated[tuple[Annotated[int, Field(ge=1, le=89)], ...], AfterValidator(_increasing)] = Field(
        default=(), max_length=10, strict=False
    )
    vendors: tuple[Name, ...] = Field(default=(), max_length=20, strict=False)
    min_subgroup: int | None = Field(default=None, ge=5, le=1_000_000)

    @model_validator(mode="after")
    def _groups(self) -> Self:
        if len(set(self.subgroups)) < len(self.subgroups):
            raise ValueError("subgroups names an attribute twice")
        for attribute, key, given in (
            ("age", "age_bands", self.age_bands),
            ("vendor", "vendors", self.vendors),
        ):
            if (attribute in self.subgroups) != bool(given):
                raise ValueError(f'{key} belongs to the subgroup "{attribute}": name both or none')
        if bool(self.subgroups) != (self.min_subgroup is not None):
            raise ValueError("min_subgroup belongs to subgroups: set it there, and only there")
        folded = [vendor.casefold() for vendor in self.vendors]
        if len(set(folded)) < len(folded) or {"other", "unknown"} & set(folded):
            raise ValueError(
                'vendors must differ, and not be called "other" or "unknown", which are there anyway'
            )
        return self

    @model_validator(mode="after")
    def _points(self) -> Self:
        names = [point.name for point in self.operating_points]
        if len(set(names)) < len(names) or "0.5" in names:
            raise ValueError(
                'each of operating_points needs a name of its own, other than "0.5", which is always there'
            )
        if not self.validation_rounds and any(point.is_target for point in self.operating_points):
            raise ValueError(
                "operating_points by sensitivity or specificity take their thresholds from validation patients: name "
                "the last round in validation_rounds, or give thresholds"
            )
        return self

    @model_validator(mode="after")
    def _stated(self) -> Self:
        if self.unnoised == (self.epsilon is not None):
            raise ValueError(
                "say exactly one of: epsilon (evaluation noised), or unnoised = true "
                "(validation and test patients have no differential privacy)"
            )
        if not self.unnoised and len(self.validation_rounds) > 5:
            raise ValueError("noised evaluation allows at most 5 validation_rounds: each adds noise to all")
        return self

    @property
    def num_releases(self) -> int:
        """Releases about one validation patient; a test patient is in one, which counts as many."""
        return max(1, len(self.validation_rounds))


class Aggregation(Frozen):
    """How updates become the next global model.

    With ``server_optimizer = "sgd"`` the mean update is added to the model, times ``server_learning_rate``;
    ``server_momentum`` carries part of it into the next round (FedAvgM; 0 is FedAvg). With ``"adam"`` the server makes
    a step of Adam along the mean update, with ``server_learning_rate`` (FedAdam).
    ``weights``: every site the same, or by its number of training patients (noised under differential
    privacy, and cut at ``max_patients``). ``update_bound`` cuts every entry of an update; both fix the grid on
    which updates travel (`shared_models.vector`).

    Secure aggregation opens nothing but sums of at least ``max(threshold, min_cohort)`` vectors, as long as at most
    ``num_colluding`` sites work together with the server; ``threshold`` sites open them. What decides this has no
    default. One setup prepares ``rounds_per_batch`` rounds. ``round_timeout_seconds`` is how long a site may train;
    ``step_timeout_seconds`` how long it may take over the small exchanges around it. A round that ends without a sum
    is burned; more than ``max_burned_rounds`` in a row stop the run, which can be resumed.
    """

    weights: Literal["equal", "patients"]
    server_optimizer: Literal["sgd", "adam"] = "sgd"
    server_learning_rate: float = Field(default=1.0, gt=0.0, le=1000.0)
    server_momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    num_sites_max: int = Field(ge=2, le=1000)
    min_cohort: int = Field(ge=2, le=1000)
    max_patients: int | None = Field(default=None, ge=1, le=1_000_000)
    update_bound: float = Field(default=UPDATE_BOUND, gt=0.0, le=1000.0)
    round_timeout_seconds: float = Field(gt=0.0)
    threshold: int = Field(ge=1, le=1000)
    num_colluding: int = Field(ge=0, le=998)
    rounds_per_batch: int = Field(default=20, ge=1, le=1000)
    max_burned_rounds: int = Field(default=3, ge=0, le=1000)
    step_timeout_seconds: float = Field(default=60.0, gt=0.0)

    @model_validator(mode="after")
    def _cohort_fits(self) -> Self:
        for name in ("min_cohort", "threshold"):
            if getattr(self, name) > self.num_sites_max:
                raise ValueError(f"{name} must not exceed num_sites_max")
        if self.min_sites_in_sum - self.num_colluding < 2:
            raise ValueError(
                "the larger of threshold and min_cohort must exceed num_colluding by 2 at least, so that two honest "
                "sites stand in every sum"
            )
        if 2 * self.threshold <= self.num_sites_max + self.num_colluding:
            raise ValueError(
                f"2 · threshold must exceed num_sites_max + num_colluding, so that no two sums can be opened: "
                f"raise threshold to {(self.num_sites_max + self.num_colluding) // 2 + 1}, or lower num_sites_max"
            )
        if (self.weights == "patients") != (self.max_patients is not None):
            raise ValueError('max_patients belongs to weights = "patients": set it there, and only there')
        return self

    @model_validator(mode="after")
    def _server_optimizer_fits(self) -> Self:
        if self.server_optimizer == "adam" and self.server_momentum:
            raise ValueError('server_optimizer = "adam" has its own momentum; leave server_momentum out')
        if self.server_optimizer == "adam" and "server_learning_rate" not in self.model_fields_set:
            raise ValueError(
                'server_optimizer = "adam" needs server_learning_rate: about how far a weight moves in a round, such '
                "as 0.001"
            )
        return self

    @property
    def min_sites_in_sum(self) -> int:
        """Fewest vectors in any sum that can be opened."""
        return max(self.threshold, self.min_cohort)


class Study(Frozen):
    """One agreed training project, written once and identified by its hash."""

    name: Slug
    title: str = Field(min_length=1, max_length=200)
    patient: str = Field(default="patient", min_length=1, max_length=100)
    task: AnyTable
    patients: Patients
    image: Image
    quality: Quality = Quality()
    model: Model
    training: Training
    privacy: Privacy
    evaluation: Evaluation
    aggregation: Aggregation

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        late = [
            number
            for number in self.evaluation.validation_rounds
            if not 1 <= number <= self.training.num_rounds
        ]
        if late:
            raise ValueError(
                f"evaluation.validation_rounds {late} lie outside 1..num_rounds ({self.training.num_rounds})"
            )
        if self.evaluation.epsilon is not None and self.privacy.mode == "none":
            raise ValueError(
                "evaluation.epsilon needs a privacy.mode that has a delta: local or distributed; "
                "with mode none set evaluation.unnoised = true"
            )
        if self.training.warmup_rounds >= self.training.num_rounds:
            raise ValueError("training.warmup_rounds must stay below num_rounds")
        self._check_validations()
        if self.privacy.mode == "distributed":
            self._check_distributed()
        else:
            self._check_grid()
        self._check_image()
        self._check_masks()
        if self.training.positive_weight != 1.0 and not self.task.takes_positive_weight:
            raise ValueError(
                f'training.positive_weight would change nothing: with task.kind = "{self.task.kind}" the weights stand '
                "with the classes or findings in [task]; leave it out"
            )
        return self

    def _check_image(self) -> None:
        """Volumes are for networks of three dimensions; images must be as large as the network wants them."""
        name, found = self.model.architecture, CATALOGUE[self.model.architecture]
        if (self.image.depth is None) == (found.dimensions == 3):
            others = [other for other, one in CATALOGUE.items() if one.dimensions != found.dimensions]
            raise ValueError(
                f'model.architecture = "{name}" takes '
                + (
                    "volumes: set image.depth, or take another architecture"
                    if self.image.depth is None
                    else f"plane images: take one of {in_quotes(others)}, or leave image.depth out"
                )
            )
        if "slices" in self.training.augmentation.flip and self.image.depth is None:
            raise ValueError(
                'training.augmentation.flip names "slices", and plane images have none; leave it out'
            )
        if min(self.image.shape[1:]) < self.model.smallest_side:
            keys = [key for key in ("scales", "levels", "stem") if key in found.keys]
            its = "".join(f" with {key} = {getattr(self.model, key)}" for key in keys)
            raise ValueError(
                f'model.architecture = "{name}"{its} wants images of {self.model.smallest_side} rows and columns at '
                f"least, slices too, and image says {' × '.join(str(size) for size in self.image.shape[1:])}; take "
                "larger images or another network"
            )

    def _check_masks(self) -> None:
        """Masks are for networks that say something of each point, and lie on the one frame of an image."""
        name, masks = self.model.architecture, bool(self.task.mask_values)
        if CATALOGUE[name].dense != masks:
            same = CATALOGUE[name].dimensions
            fitting = [
                one for one, other in CATALOGUE.items() if other.dense == masks and other.dimensions == same
            ]
            raise ValueError(
                f'model.architecture = "{name}" says something of '
                f"{'an image as a whole' if masks else 'each point of an image'}, which is not what task.kind = "
                f'"{self.task.kind}" learns; take one of {in_quotes(fitting)}'
            )
        if masks and self.image.frames != "refuse":
            raise ValueError(
                f'image.frames = "{self.image.frames}" cannot be: which of the frames a mask was drawn on is not '
                'known; leave it out, so that files of several frames are left out with task.kind = "segmentation"'
            )

    def _check_validations(self) -> None:
        """What the federation's validations decide needs some, in time."""
        training, validated = self.training, self.evaluation.validation_rounds
        waiting = [
            name
            for name, is_so in (
                ('training.schedule = "plateau"', training.schedule == "plateau"),
                ("training.early_stopping", training.early_stopping is not None),
            )
            if is_so
        ]
        if waiting and not validated:
            raise ValueError(
                f"{' and '.join(waiting)} waits for validations: name evaluation.validation_rounds"
            )
        if waiting and self.privacy.mode != "none" and self.evaluation.unnoised:
            raise ValueError(
                f"{' and '.join(waiting)} would let exact counts of validation patients decide on a model that "
                "promises differential privacy: set evaluation.epsilon in place of evaluation.unnoised"
            )
        if training.early_stopping is not None and training.num_rounds in validated:
            raise ValueError(
                f"with training.early_stopping the model to be tested is chosen before the final test, with which the "
                f"validation of the last round ({training.num_rounds}) comes; leave that out of "
                "evaluation.validation_rounds"
            )

    def most_reductions(self, number: int) -> int:
        """How often the learning rate can have been reduced before round *number*: a validation takes a round."""
        if self.training.schedule != "plateau":
            return 0
        known = [validated for validated in self.evaluation.validation_rounds if validated <= number - 2]
        return len(known) // self.training.plateau_patience

    def _check_distributed(self) -> None:
        """One global step a round, each patient the same weight, and no site that could take the noise away."""
        training, aggregation = self.training, self.aggregation
        wanted = [
            ("training.local_steps = 1", training.local_steps == 1),
            ('aggregation.weights = "patients"', aggregation.weights == "patients"),
            (
                "aggregation.server_momentum = 0 (training.momentum is the server's)",
                not aggregation.server_momentum,
            ),
            (
                "aggregation.server_optimizer and server_learning_rate left out (those of [training] are the server's)",
                (aggregation.server_optimizer, aggregation.server_learning_rate) == ("sgd", 1.0),
            ),
            ("aggregation.update_bound left out", aggregation.update_bound == UPDATE_BOUND),
            ("aggregation.num_colluding of 1 at least", aggregation.num_colluding >= 1),
        ]
        if missing := [words for words, is_so in wanted if not is_so]:
            raise ValueError(
                'privacy.mode = "distributed" makes one step over all sites in each round, and wants '
                f"{'; '.join(missing)}"
            )

    def _check_grid(self) -> None:
        """Sums must not overflow, and the update of the smallest site must keep its precision."""
        aggregation = self.aggregation
        largest = (2**31 - 1) // aggregation.num_sites_max
        heaviest = aggregation.max_patients or 1
        lightest = min(self.patients.min_training, heaviest) if aggregation.max_patients else 1
        if largest * lightest // heaviest < 2**16:
            raise ValueError(
                f"aggregation.max_patients = {heaviest} and num_sites_max = {aggregation.num_sites_max} leave an "
                f"update of a site with min_training = {lightest} patients fewer than 65536 steps of its grid; lower "
                "max_patients or num_sites_max, or raise min_training"
            )

    @property
    def hash(self) -> str:
        """SHA-256, hexadecimal, of the canonical encoding: the identity of the study."""
        return hashlib.sha256(b"collegium-study-1\n" + canonical_json(self)).hexdigest()

    @property
    def test_round(self) -> int:
        """Number of the round that evaluates the final model: the one after the last round of training."""
        return self.training.num_rounds + 1

    @property
    def num_noise_shares(self) -> int:
        """Sites whose noise together is the run's: the fewest honest ones in any sum; 1 where each adds all of it."""
        if self.privacy.mode != "distributed":
            return 1
        return self.aggregation.min_sites_in_sum - self.aggregation.num_colluding

    def learning_rate_at_sites(self, number: int, *, reductions: int = 0) -> float:
        """The learning rate of a site's steps in round *number*, from 1; see `Training.learning_rate_in`.

        It stays as it is where the server has an Adam: that heeds the direction of updates and not their size, and
        the schedule is that of its own rate.
        """
        if self.aggregation.server_optimizer == "adam":
            return self.training.learning_rate
        return self.training.learning_rate_in(number, reductions=reductions)

    @property
    def num_steps(self) -> int:
        """Steps that a site takes at most in the whole run."""
        return self.training.num_rounds * self.training.local_steps


def canonical_json(model: Frozen) -> bytes:
    """The one encoding of a file model: JSON, keys sorted, no spaces, defaults written out, ASCII."""
    values = model.model_dump(mode="json")
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def read_study(path: Path) -> Study:
    """Read ``study.toml``. Raises ConfigurationError with every problem of the file."""
    return read_toml(path, Study)
