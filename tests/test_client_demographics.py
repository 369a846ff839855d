"""Which subgroup a patient is in: what headers may say of sex, age and maker, and what is made of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataelem import DataElement
from pydicom.dataset import FileDataset
from test_server_subgroups import NAMES, STUDY

from client.demographics import MOST_YEARS, Demographics, age_of, sex_of


def header(**values: str) -> FileDataset:
    made = FileDataset("", {}, preamble=b"")
    for keyword, value in values.items():
        made[keyword] = DataElement(keyword, "LO", value)
    return made


@pytest.mark.parametrize(
    ("age", "birth", "day", "years"),
    [
        ("063Y", "", "", 63),
        ("063Y", "20000101", "20200101", 63),
        ("018M", "", "", 1),
        ("011M", "", "", 0),
        ("060W", "", "", 1),
        ("400D", "", "", 1),
        ("095Y", "", "", MOST_YEARS),
        ("", "19600630", "20200629", 59),
        ("", "19600630", "20200630", 60),
        ("", "1960-06-30", "20200630", 60),
        ("63", "19600630", "20200630", 60),
        ("", "19600630", "", None),
        ("", "", "20200630", None),
        ("", "19000101", "20200630", None),
        ("", "20200630", "19600630", None),
        ("", "18000630", "20200630", None),
        ("", "20201350", "20200630", None),
        ("999Y", "", "", None),
        ("", "", "", None),
    ],
)
def test_age_is_stated_or_from_birth_to_examination(
    age: str, birth: str, day: str, years: int | None
) -> None:
    assert age_of(header(PatientAge=age, StudyDate=day), {"PatientBirthDate": birth}) == years


@pytest.mark.parametrize(
    ("sex", "known"), [("F", "F"), ("M", "M"), ("O", "O"), ("", ""), ("W", ""), ("female", "")]
)
def test_sex_is_one_of_dicoms_values_or_not_known(sex: str, known: str) -> None:
    assert sex_of({"PatientSex": sex}) == known


@pytest.mark.parametrize(
    ("patient", "groups"),
    [
        (Demographics(sex="F", age=39, maker="ACME Medical"), ("female", "under 40", "Acme")),
        (Demographics(sex="M", age=40, maker="Globex"), ("male", "40 to 64", "Globex")),
        (Demographics(sex="O", age=65, maker="Acmeter"), ("other", "65 and over", "other")),
        (Demographics(), ("unknown", "unknown", "unknown")),
        (Demographics(maker="?"), ("unknown", "unknown", "unknown")),
    ],
)
def test_each_patient_is_in_one_group_of_each_attribute(
    patient: Demographics, groups: tuple[str, ...]
) -> None:
    places = patient.places(STUDY.evaluation)
    assert tuple(names[place] for names, place in zip(NAMES.values(), places, strict=True)) == groups


@given(
    st.lists(
        st.builds(
            Demographics,
            sex=st.sampled_from(["", "F", "M", "O"]),
            age=st.none() | st.integers(0, MOST_YEARS),
            maker=st.sampled_from(["", "?", "Acme", "Initech", "GLOBEX Inc."]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_the_images_say_the_order_does_not_matter_and_contradictions_are_unknown(
    images: list[Demographics],
) -> None:
    patient = Demographics.of_patient(images)
    assert patient == Demographics.of_patient(images[::-1])
    places = patient.places(STUDY.evaluation)
    assert len(places) == 3
    assert all(0 <= place < 4 for place in places)
    if len({one.sex for one in images} - {""}) > 1:
        assert NAMES["sex"][places[0]] == "unknown"
    known = [one.age for one in images if one.age is not None]
    assert patient.age == (min(known) if known else None)


def test_patients_without_a_group_are_not_counted_into_one() -> None:
    from client.evaluation import group_statistics
    from shared_models.tasks.registry import task_of

    with pytest.raises(RuntimeError, match="put into them"):
        group_statistics(
            np.zeros(1), np.zeros(1, dtype=np.int64), None, task=task_of(STUDY), evaluation=STUDY.evaluation
        )
