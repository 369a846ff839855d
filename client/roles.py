"""The role of a patient in a study: train, validation or test."""

from collections.abc import Set
from enum import StrEnum

from client.dicom_file import Unusable
from client.reasons import Reason
from client.secret import SiteSecret
from shared_models.study import Patients


class Role(StrEnum):
    """What a patient's images are used for. A patient has exactly one role."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


def role_of(patient_identifier: str, secret: SiteSecret, patients: Patients) -> Role:
    """Return the role of a patient by keyed hash.

    Guarantees: depends on this patient, the site's secret and the study's fractions only, never on other
    patients; another validation fraction leaves the test patients as they are.

    Args:
        patient_identifier: Patient ID (0010,0020) as the hospital knows it.
        secret: the site's secret.
        patients: the study's fractions.
    """
    return role_at(role_draw(patient_identifier, secret), patients)


def role_draw(patient_identifier: str, secret: SiteSecret) -> float:
    """Return a patient's number in [0, 1), by keyed hash; it fixes the role in every study."""
    return secret.uniform("role", patient_identifier)


def role_at(draw: float, patients: Patients) -> Role:
    """Return the role of a patient with this number."""
    if draw < patients.test_fraction:
        return Role.TEST
    if draw < patients.test_fraction + patients.validation_fraction:
        return Role.VALIDATION
    return Role.TRAIN


def stated_role(stated: Set[Role]) -> Role:
    """Return the one role that the labels file states for a patient.

    Args:
        stated: every role that a row for this patient states.

    Raises:
        Unusable: no role, or more than one.
    """
    if not stated:
        raise Unusable(Reason.ROLE_MISSING)
    if len(stated) > 1:
        raise Unusable(Reason.ROLE_CONTRADICTORY)
    return next(iter(stated))
