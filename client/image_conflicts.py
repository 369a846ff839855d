"""What only all files together show: the same image twice, or under two Patient IDs; two patients under one ID."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from client.quality_file import SiteQuality
from client.reasons import Reason
from shared_models.quality import Quality

MOST_IDS = 4
"""So many Patient IDs may be one person; a name, birth date and sex of more is a placeholder, and no evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """Who is who among the Patient IDs, by pseudonym; takes the pseudonyms of each file with a readable header."""

    births: dict[str, set[str]] = field(default_factory=dict)
    sexes: dict[str, set[str]] = field(default_factory=dict)
    persons: dict[str, set[str]] = field(default_factory=dict)
    instances: dict[str, set[str]] = field(default_factory=dict)

    def add(self, pseudonyms: Mapping[str, str]) -> None:
        """Take in one file."""
        if not (patient := pseudonyms.get("PatientID", "")):
            return
        for known, key, value in (
            (self.births, patient, pseudonyms.get("birth")),
            (self.sexes, patient, pseudonyms.get("sex")),
            (self.persons, pseudonyms.get("person"), patient),
            (self.instances, pseudonyms.get("SOPInstanceUID"), patient),
        ):
            if key and value:
                known.setdefault(key, set()).add(value)

    @property
    def contradictory(self) -> frozenset[str]:
        """Patients whose files name several birth dates or sexes."""
        return frozenset(
            patient
            for known in (self.births, self.sexes)
            for patient, values in known.items()
            if len(values) > 1
        )

    @property
    def several_ids(self) -> tuple[frozenset[str], ...]:
        """For each person who seems to have several Patient IDs: these."""
        return tuple(
            frozenset(patients) for patients in self.persons.values() if 1 < len(patients) <= MOST_IDS
        )

    def is_shared(self, pseudonyms: Mapping[str, str]) -> bool:
        """Whether the image with this SOPInstanceUID is there under several Patient IDs."""
        return len(self.instances.get(pseudonyms.get("SOPInstanceUID", ""), ())) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An image that is usable by itself.

    Attributes:
        path: in the order of paths, earlier ones are kept.
        patient: pseudonym.
        label: of whatever kind; compared only.
        pixels: stands for the stored values; empty where they are no evidence, because all are equal.
        shared: whether its SOPInstanceUID is there under another Patient ID.
    """

    path: str
    patient: str
    label: object
    pixels: str
    shared: bool


def conflicts(
    candidates: Sequence[Candidate], identities: Identities, study: Quality, site: SiteQuality
) -> dict[str, Reason]:
    """Return why some of the candidates are left out after all, by path."""
    found: dict[str, Reason] = {}
    if site.patient_conflicts == "refuse":
        several = frozenset().union(*identities.several_ids)
        contradictory = identities.contradictory
        for image in candidates:
            if image.patient in several:
                found[image.path] = Reason.TWO_IDS
            if image.patient in contradictory:
                found[image.path] = Reason.PATIENT_CONFLICT
    with_pixels = sorted(
        (image for image in candidates if image.pixels), key=lambda image: (image.pixels, image.path)
    )
    for _, group in groupby(with_pixels, key=lambda image: image.pixels):
        found |= _same_pixels(list(group), refuse_shared=study.shared_pixels == "refuse")
    if study.shared_pixels == "refuse":
        found |= {image.path: Reason.TWO_PATIENTS for image in candidates if image.shared}
    return found


def _same_pixels(images: Sequence[Candidate], *, refuse_shared: bool) -> dict[str, Reason]:
    """Of images with the same pixels: which are left out."""
    by_patient: dict[str, list[Candidate]] = {}
    for image in images:
        by_patient.setdefault(image.patient, []).append(image)
    if len(by_patient) > 1 and refuse_shared:
        return _all(images, Reason.TWO_PATIENTS)
    found: dict[str, Reason] = {}
    for own in by_patient.values():
        if any(image.label != own[0].label for image in own):
            found |= _all(own, Reason.LABEL_CONTRADICTORY)
        else:
            found |= _all(own[1:], Reason.DUPLICATE_PIXELS)
    return found


def _all(images: Iterable[Candidate], reason: Reason) -> dict[str, Reason]:
    return {image.path: reason for image in images}
