"""One score and one label for each patient, from the patient's images."""

import numpy as np

from shared_models.tasks.task import MISSING, Counts, Doubles


def by_patient(scores: Doubles, labels: Counts, first_image: Counts) -> tuple[Doubles, Counts]:
    """Return (score, label) of each patient, who counts once, whatever the number of images.

    The label is the largest of the images': a patient has a finding where any image has it, and is of the last of the
    study's classes that any image is of. A finding that is not known of any image is not known of the patient. The
    score is the mean over all images: labels have no part in it, since nobody has them where a model is used.

    Args:
        scores: of each image, float64, shape (num_images,) or (num_images, num_outputs).
        labels: of each image, int64, shape (num_images,) or (num_images, num_findings).
        first_image: int64, shape (num_patients + 1,), as of `client.patients.PatientSet`.

    Returns:
        As *scores* and *labels*, with patients in the place of images.
    """
    num_patients = len(first_image) - 1
    owner = np.repeat(np.arange(num_patients), np.diff(first_image))
    patient_labels = np.full((num_patients, *labels.shape[1:]), MISSING, dtype=np.int64)
    np.maximum.at(patient_labels, owner, labels.astype(np.int64))

    sums = np.zeros((num_patients, *scores.shape[1:]))
    np.add.at(sums, owner, scores)
    num_images = np.diff(first_image).astype(np.float64).reshape(-1, *(1,) * (scores.ndim - 1))
    return sums / num_images, patient_labels
