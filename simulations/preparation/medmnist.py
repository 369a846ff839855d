"""MedMNIST: one ``.npz`` file of small grey images, spread over hospitals as a study asks."""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from simulations.preparation.cases import Case, Caseload, Image, SourceError, hospital_names
from simulations.preparation.dicom_writer import GreyPicture, Header, Subject
from simulations.preparation.partition import (
    PartitionError,
    Shares,
    assign_with_minimum,
    dirichlet_shares,
    drawn_quantity_shares,
    iid_shares,
    missing_label_shares,
    quantity_shares,
)
from simulations.preparation.sources import MedMnistSource, data_folder

ROLES = MappingProxyType({"train": "train", "val": "validation", "test": "test"})
LABEL_COLUMN = "finding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """One MedMNIST data set: what its images are, and what its label numbers 0, 1, ... mean."""

    title: str
    kind: str
    labels: tuple[str, ...]


COLLECTIONS: Mapping[str, Collection] = MappingProxyType(
    {
        "pneumoniamnist": Collection(
            title="PneumoniaMNIST", kind="computed-radiography", labels=("normal", "pneumonia")
        ),
        "breastmnist": Collection(
            title="BreastMNIST", kind="ultrasound", labels=("malignant", "normal-or-benign")
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MedMnist:
    """A file's images in one row: train, then validation, then test.

    Args:
        images: uint8, shape (num_images, rows, columns).
        labels: label number of each image, int64, shape (num_images,).
        roles: 0 train, 1 validation, 2 test, int64, shape (num_images,).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    roles: NDArray[np.int64]


def locate_medmnist(source: MedMnistSource) -> Path:
    """The file of *source*. Raises SourceError where there is none, or more than one to choose from."""
    if source.file is not None and source.file.is_file():
        return source.file
    if source.file is not None and not source.file.is_dir():
        raise SourceError(f"{source.file}: is not a file; give the path of the .npz file")
    folder = source.file if source.file is not None else data_folder(source.dataset)
    found = sorted(folder.glob(f"{source.dataset}*.npz"))
    if len(found) != 1:
        raise SourceError(
            f"{folder}: holds {len(found)} files {source.dataset}*.npz; give the path of the file itself"
        )
    return found[0]


def read_medmnist(path: Path, num_labels: int) -> MedMnist:
    """Read a MedMNIST file of grey images.

    Raises:
        SourceError: it is not such a file, an array is missing or has another shape or type than it should, or
            a label is not in 0..num_labels-1.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            parts = [_part(path, arrays, prefix, num_labels) for prefix in ROLES]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: cannot be read as a .npz file ({error}); fetch it again") from error
    if len({images.shape[1:] for images, _ in parts}) != 1:
        raise SourceError(f"{path}: train, validation and test images differ in size; fetch the file again")
    return MedMnist(
        images=np.concatenate([images for images, _ in parts]),
        labels=np.concatenate([labels for _, labels in parts]),
        roles=np.repeat(np.arange(len(parts)), [len(labels) for _, labels in parts]),
    )


def _part(
    path: Path, arrays: Mapping[str, NDArray[np.generic]], prefix: str, num_labels: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    for name in (f"{prefix}_images", f"{prefix}_labels"):
        if name not in arrays:
            raise SourceError(f"{path}: has no array {name}; it is not a MedMNIST file")
    images, labels = arrays[f"{prefix}_images"], arrays[f"{prefix}_labels"]
    if images.ndim != 3 or images.dtype != np.uint8:
        raise SourceError(
            f"{path}: {prefix}_images is {images.dtype} of shape {images.shape}; must be uint8 (images, rows, columns)"
        )
    if labels.shape not in ((len(images),), (len(images), 1)) or labels.dtype.kind not in "iu":
        raise SourceError(
            f"{path}: {prefix}_labels is {labels.dtype} of shape {labels.shape}; must be {len(images)} whole numbers"
        )
    numbers = labels.reshape(-1).astype(np.int64)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < num_labels:
        raise SourceError(
            f"{path}: {prefix}_labels runs from {numbers.min()} to {numbers.max()}; must be in 0..{num_labels - 1}"
        )
    return images.astype(np.uint8, copy=False), numbers


def medmnist_caseloads(source: MedMnistSource, path: Path, seed: int) -> tuple[Caseload, ...]:
    """Spread the patients of the file over hospitals. Raises SourceError, or PartitionError."""
    collection = COLLECTIONS[source.dataset]
    data = read_medmnist(path, len(collection.labels))
    generator = np.random.default_rng([seed, 2])
    chosen = _chosen(data, source.max_patients, generator)
    draw = _shares(source, collection.labels, generator)
    hospitals = assign_with_minimum(
        data.labels[chosen], data.roles[chosen], draw, generator, min_patients=source.min_patients
    )
    return tuple(
        Caseload(
            name=name,
            scanner=f"{collection.title} {data.images.shape[1]}×{data.images.shape[2]}",
            label_column=LABEL_COLUMN,
            cases=tuple(_case(source, name, data, int(number)) for number in chosen[hospitals == hospital]),
        )
        for hospital, name in enumerate(hospital_names(source.num_hospitals))
    )


def _chosen(data: MedMnist, max_patients: int | None, generator: np.random.Generator) -> NDArray[np.int64]:
    """The patients to take: all, or a sample that keeps the mix of roles and labels on average."""
    everyone = np.arange(len(data.labels))
    if max_patients is None or max_patients >= len(everyone):
        return everyone
    return np.sort(generator.choice(everyone, size=max_patients, replace=False))


def _shares(
    source: MedMnistSource, labels: tuple[str, ...], generator: np.random.Generator
) -> Callable[[], Shares]:
    num_hospitals, num_labels, alpha = source.num_hospitals, len(labels), source.alpha
    if source.partition == "dirichlet" and alpha is not None:
        return lambda: dirichlet_shares(num_hospitals, num_labels, alpha, generator)
    if source.partition == "quantity" and alpha is not None:
        return lambda: drawn_quantity_shares(num_hospitals, num_labels, alpha, generator)
    if source.partition == "quantity" and source.shares is not None:
        return _fixed(quantity_shares(source.shares, num_labels))
    if source.partition == "missing-label" and source.missing is not None:
        if unknown := sorted(set(source.missing) - {"", *labels}):
            raise PartitionError(f'missing names {unknown}; the labels are {list(labels)}, "" for none')
        numbers = [labels.index(label) if label else None for label in source.missing]
        return _fixed(missing_label_shares(numbers, num_labels))
    return _fixed(iid_shares(num_hospitals, num_labels))


def _fixed(shares: Shares) -> Callable[[], Shares]:
    return lambda: shares


def _case(source: MedMnistSource, hospital: str, data: MedMnist, number: int) -> Case:
    collection = COLLECTIONS[source.dataset]
    role = tuple(ROLES.values())[data.roles[number]]
    first = int(np.searchsorted(data.roles, data.roles[number]))
    patient_id = f"{source.dataset}-{role}-{number - first:05d}"
    rows, columns = data.images.shape[1:]
    header = Header(
        dataset=source.dataset,
        hospital=hospital,
        subject=Subject(patient_id=patient_id, name=f"{collection.title}^{role} {number - first:05d}"),
        kind=collection.kind,
        derivation=f"Resized to {rows} x {columns} pixels by {collection.title}",
        deidentified_by=f"Published without identity by {collection.title}",
    )
    picture = GreyPicture(pixels=data.images[number], windowed=False)
    return Case(
        patient_id=patient_id,
        label=collection.labels[data.labels[number]],
        role=role,
        images=(Image(header=header, picture=lambda: picture),),
    )
