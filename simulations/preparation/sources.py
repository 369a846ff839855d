"""The ``[hospitals]`` table of a scenario: which images, and how they are spread over hospitals."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from shared_models.configuration import Frozen
from simulations.preparation.cases import SourceError

FilePath = Annotated[Path, Field(strict=False)]
NumHospitals = Annotated[int, Field(ge=1, le=1000)]
DATA_VARIABLE = "COLLEGIUM_DATA"


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, int) else value


OneOrMany = Annotated[tuple[int, ...], Field(min_length=1, strict=False), BeforeValidator(_one_or_many)]


class _Synthetic(Frozen):
    """What all synthetic hospitals have in common."""

    num_hospitals: NumHospitals = 4
    patients_per_hospital: OneOrMany = (150,)
    prevalence: tuple[float, float] = Field(default=(0.3, 0.6), strict=False)

    @property
    def num_patients(self) -> tuple[int, ...]:
        """Patients of each hospital."""
        given = self.patients_per_hospital
        return given * self.num_hospitals if len(given) == 1 else given

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len(self.num_patients) != self.num_hospitals:
            raise ValueError(
                f"patients_per_hospital has {len(self.num_patients)} numbers for {self.num_hospitals} hospitals; "
                "give one number, or one for each hospital"
            )
        if not all(2 <= number <= 1_000_000 for number in self.num_patients):
            raise ValueError("patients_per_hospital must lie in 2..1000000")
        low, high = self.prevalence
        if not 0.0 < low <= high < 1.0:
            raise ValueError(f"prevalence is [{low}, {high}]; needs 0 < lowest <= highest < 1")
        return self


class PhantomSource(_Synthetic):
    """Synthetic chest radiographs; every hospital has its own scanner and its own share of sick patients.

    ``patients_per_hospital`` is one number for all, or one for each. ``image_size`` is the nominal height and
    width in pixels; scanners differ from it by up to a quarter. ``prevalence`` gives the lowest and highest share
    of patients with pneumonia among the hospitals. ``contrast`` scales how well opacities stand
    out, ``opacity_size`` how large they are.
    """

    kind: Literal["phantom"] = "phantom"
    image_size: int = Field(default=96, ge=32, le=2048)
    contrast: float = Field(default=1.0, gt=0.0, le=4.0)
    opacity_size: float = Field(default=1.0, gt=0.0, le=4.0)
    scanners: Literal["varied", "same"] = "varied"


class NodulePhantomSource(_Synthetic):
    """Synthetic CT volumes of the chest, one file a slice; every hospital has its own scanner.

    ``image_size`` is the height and width of a slice in pixels. ``prevalence`` gives the lowest and highest share of
    patients with a nodule among the hospitals; ``nodule_size`` scales how large nodules are. ``masks`` writes a DICOM
    SEG of the nodule for each series.
    """

    kind: Literal["nodule-phantom"] = "nodule-phantom"
    image_size: int = Field(default=40, ge=16, le=512)
    nodule_size: float = Field(default=1.0, gt=0.0, le=4.0)
    masks: bool = False


class MedMnistSource(Frozen):
    """A MedMNIST file, its patients (one image each) spread over hospitals; official split kept as ``role``.

    Without ``file`` the file is looked for in ``$COLLEGIUM_DATA/<dataset>/``. ``partition``:

    - ``iid``: hospitals of the same size and mix;
    - ``quantity``: the same mix, sizes by ``shares``, or drawn from a Dirichlet with ``alpha``;
    - ``dirichlet``: every label spread by a Dirichlet with ``alpha``;
    - ``missing-label``: ``missing`` names for each hospital the label that it lacks ("" for none).

    ``max_patients`` takes only that many patients, for quick trials.
    """

    kind: Literal["medmnist"] = "medmnist"
    dataset: Literal["pneumoniamnist", "breastmnist"] = "pneumoniamnist"
    file: FilePath | None = None
    num_hospitals: NumHospitals = 5
    partition: Literal["iid", "quantity", "dirichlet", "missing-label"] = "iid"
    alpha: float | None = Field(default=None, gt=0.0, le=1e6)
    shares: tuple[float, ...] | None = Field(default=None, strict=False)
    missing: tuple[str, ...] | None = Field(default=None, strict=False)
    min_patients: int = Field(default=20, ge=1)
    max_patients: int | None = Field(default=None, ge=10)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        wanted = {
            "iid": (),
            "quantity": ("alpha", "shares"),
            "dirichlet": ("alpha",),
            "missing-label": ("missing",),
        }
        allowed = wanted[self.partition]
        given = [name for name in ("alpha", "shares", "missing") if getattr(self, name) is not None]
        if stray := [name for name in given if name not in allowed]:
            raise ValueError(f'partition = "{self.partition}" does not use {", ".join(stray)}; remove it')
        if allowed and len(given) != 1:
            raise ValueError(f'partition = "{self.partition}" needs exactly one of: {", ".join(allowed)}')
        for name in ("shares", "missing"):
            values = getattr(self, name)
            if values is not None and len(values) != self.num_hospitals:
                raise ValueError(
                    f"{name} has {len(values)} values for {self.num_hospitals} hospitals; give one each"
                )
        if self.shares is not None and not all(share > 0 for share in self.shares):
            raise ValueError("shares must all be positive")
        return self


class HamSource(Frozen):
    """HAM10000 dermatoscopy: its four sources are four hospitals, a lesion is a patient.

    ``folder`` holds ``images.zip`` and ``HAM10000_metadata_with_site.csv``; without it,
    ``$COLLEGIUM_DATA/ham10000`` is taken. ``max_patients`` takes only that many lesions per hospital. ``masks`` writes
    the mask of each lesion too, as a grey PNG; the folder then has to hold ``masks_200x150.zip``.
    """

    kind: Literal["ham10000"] = "ham10000"
    folder: FilePath | None = None
    max_patients: int | None = Field(default=None, ge=1)
    masks: bool = False


Source = Annotated[
    PhantomSource | NodulePhantomSource | MedMnistSource | HamSource, Field(discriminator="kind")
]


def data_folder(name: str) -> Path:
    """``$COLLEGIUM_DATA/name``, where public data sets lie that a source does not name.

    Raises:
        SourceError: the variable is not set, or the folder is not there.
    """
    root = os.environ.get(DATA_VARIABLE)
    if not root:
        raise SourceError(
            f"no path is given for {name}; give one, or set {DATA_VARIABLE} to a folder that holds {name}/"
        )
    folder = Path(root) / name
    if not folder.is_dir():
        raise SourceError(f"{folder}: is not a folder; give the path of {name}, or put it there")
    return folder
