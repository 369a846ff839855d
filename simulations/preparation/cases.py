"""What a source of images hands over: for each hospital its cases, a case being one patient."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from simulations.preparation.dicom_writer import Header, Picture


class SourceError(ValueError):
    """A source of images cannot be used. The message says which file or column, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image to be: its header, and the function that makes its picture when it is written."""

    header: Header
    picture: Callable[[], Picture]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """One mask to be: the name of its file, and the function that makes its bytes when it is written."""

    name: str
    content: Callable[[], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One patient: identifier (also a folder name), label, role where the source fixes it, images, and their masks."""

    patient_id: str
    label: str
    role: str | None = None
    images: tuple[Image, ...]
    masks: tuple[Mask, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caseload:
    """One hospital's cases.

    Args:
        name: the hospital's folder name.
        scanner: what took the images, for people to read.
        label_column: header of the label's column in the labels file.
        cases: the patients, in the order in which they are written.
    """

    name: str
    scanner: str
    label_column: str
    cases: tuple[Case, ...]

    @property
    def num_images(self) -> int:
        """Images of all cases."""
        return sum(len(case.images) for case in self.cases)

    @property
    def num_masks(self) -> int:
        """Masks of all cases."""
        return sum(len(case.masks) for case in self.cases)

    @property
    def has_roles(self) -> bool:
        """Whether the source fixes the role of every patient."""
        return all(case.role is not None for case in self.cases)

    @property
    def label_counts(self) -> Mapping[str, int]:
        """Patients of each label, labels sorted."""
        labels = sorted(case.label for case in self.cases)
        return {label: labels.count(label) for label in dict.fromkeys(labels)}


def hospital_names(num_hospitals: int) -> tuple[str, ...]:
    """``hospital-1`` and so on, padded so that they sort in their order."""
    digits = len(str(num_hospitals))
    return tuple(f"hospital-{number:0{digits}d}" for number in range(1, num_hospitals + 1))
