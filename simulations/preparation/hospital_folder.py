"""Writing one hospital's folder: its images, their masks and its labels file."""

import csv
from collections.abc import Callable
from pathlib import Path

from simulations.preparation.cases import Case, Caseload, SourceError
from simulations.preparation.dicom_writer import dicom_bytes
from simulations.preparation.jpeg import JpegError

IMAGES_NAME = "images"
MASKS_NAME = "masks"
LABELS_NAME = "labels.csv"
LABEL_KEY = "PatientID"
ROLE_COLUMN = "role"


def write_hospital(folder: Path, caseload: Caseload, wrote: Callable[[int], None]) -> None:
    """Write *caseload* below *folder*, over files of the same names.

    Args:
        folder: the hospital's folder; made where it is not there.
        caseload: the hospital's cases.
        wrote: called after each patient with the number of images written for it.

    Raises:
        SourceError: an image of the source cannot become DICOM.
    """
    for case in caseload.cases:
        _write_images(folder / IMAGES_NAME / case.patient_id, case)
        _write_masks(folder / MASKS_NAME / case.patient_id, case)
        wrote(len(case.images))
    _write_labels(folder / LABELS_NAME, caseload)


def _write_images(folder: Path, case: Case) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(case.images, start=1):
        try:
            content = dicom_bytes(image.header, image.picture())
        except JpegError as error:
            raise SourceError(f"image {number} of {case.patient_id} {error}") from error
        (folder / f"{number}.dcm").write_bytes(content)


def _write_masks(folder: Path, case: Case) -> None:
    for mask in case.masks:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / mask.name).write_bytes(mask.content())


def _write_labels(path: Path, caseload: Caseload) -> None:
    """One line per patient, sorted."""
    header = [LABEL_KEY, caseload.label_column, *([ROLE_COLUMN] if caseload.has_roles else [])]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for case in sorted(caseload.cases, key=lambda case: case.patient_id):
            writer.writerow([case.patient_id, case.label, case.role][: len(header)])
