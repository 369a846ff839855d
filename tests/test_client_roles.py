"""The role of a patient."""

import pytest
from dicom_files import OTHER_SECRET, SECRET, make_study
from hypothesis import given
from hypothesis import strategies as st

from client.dicom_file import Unusable
from client.reasons import Reason
from client.roles import Role, role_of, stated_role
from shared_models.study import Patients

PATIENTS = make_study().patients
patients = st.text(min_size=1, max_size=16)


@pytest.mark.slow
@given(patients, st.sets(patients), st.sets(patients))
def test_the_role_of_a_patient_does_not_change_when_others_come_and_go(
    patient: str, before: set[str], after: set[str]
) -> None:
    first = {one: role_of(one, SECRET, PATIENTS) for one in [*sorted(before), patient]}
    second = {one: role_of(one, SECRET, PATIENTS) for one in [patient, *sorted(after, reverse=True)]}
    assert all(first[one] == second[one] for one in first.keys() & second.keys())


@given(patients)
def test_another_validation_fraction_leaves_test_patients_as_they_are(patient: str) -> None:
    wider = Patients(
        roles="hash", min_training=1, validation_fraction=0.5, test_fraction=PATIENTS.test_fraction
    )
    assert (role_of(patient, SECRET, PATIENTS) is Role.TEST) == (role_of(patient, SECRET, wider) is Role.TEST)


def test_roles_come_in_the_studys_fractions_and_differ_between_sites() -> None:
    names = [f"PAT-{number}" for number in range(5000)]
    ours = [role_of(name, SECRET, PATIENTS) for name in names]
    assert abs(ours.count(Role.TEST) / 5000 - 0.2) < 0.02
    assert abs(ours.count(Role.VALIDATION) / 5000 - 0.2) < 0.02
    theirs = [role_of(name, OTHER_SECRET, PATIENTS) for name in names]
    assert ours != theirs


def test_no_patient_is_tested_or_validated_where_the_fraction_is_zero() -> None:
    none = Patients(roles="hash", min_training=1, validation_fraction=0.0, test_fraction=0.0)
    assert {role_of(str(number), SECRET, none) for number in range(1000)} == {Role.TRAIN}


@pytest.mark.slow
def test_a_stated_role_is_the_only_one_stated() -> None:
    assert stated_role({Role.TEST}) is Role.TEST
    with pytest.raises(Unusable) as missing:
        stated_role(set())
    assert missing.value.reason is Reason.ROLE_MISSING
    with pytest.raises(Unusable) as contradictory:
        stated_role({Role.TEST, Role.TRAIN})
    assert contradictory.value.reason is Reason.ROLE_CONTRADICTORY
