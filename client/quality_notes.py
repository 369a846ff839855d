"""What the index shows that leaves no file out and still matters, in sentences for the site's operator."""

from collections.abc import Iterator

from client.dicom_index import Index
from client.roles import Role
from shared_models.study import Study

_ROLES = {Role.TRAIN: "training", Role.VALIDATION: "validation", Role.TEST: "test"}


def quality_notes(index: Index, study: Study) -> tuple[str, ...]:
    """Every note; none where there is nothing to say."""
    return tuple(_notes(index, study))


def _notes(index: Index, study: Study) -> Iterator[str]:
    tally = index.tally
    for role in Role:
        if not index.num_patients(role):
            continue
        missing = [name for name, number in index.num_patients_by_class(role).items() if not number]
        if missing:
            names = " or ".join(missing)
            yield f"No {_ROLES[role]} patient counts as {names}: look whether labels or images are missing."
    if number := tally.num_several_ids:
        yield (
            f"{number} {_is_or_are(number, 'person seems', 'persons seem')} to have several Patient IDs: name, birth "
            "date and sex are the same. Each Patient ID is protected as one patient, so that such a person spends the "
            "budget of privacy once for each. Merge the IDs at the source, or leave these patients out: "
            'quality.patient_conflicts = "refuse".'
        )
    if number := tally.num_contradictory:
        yield (
            f"{number} {_is_or_are(number, 'Patient ID has', 'Patient IDs have')} files with different birth dates or "
            "sexes: two patients may share an ID. They count as one patient, and who withdraws one withdraws both. "
            "Correct the files at the source."
        )
    if number := tally.num_shared:
        yield (
            f"Images of {number} Patient IDs are there under another Patient ID too. All of them are left out: nobody "
            "knows whose they are."
        )
    windowless = sum(not entry.has_window for entry in index.images)
    if windowless and study.image.intensity == "window":
        yield f"{windowless} images have no window, which the study would use; their full range is seen."


def _is_or_are(number: int, one: str, several: str) -> str:
    return one if number == 1 else several
