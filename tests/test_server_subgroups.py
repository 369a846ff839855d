"""Subgroups of the final test: what the server opens, what it keeps of it, and that nobody can subtract."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS, make_study
from test_shared_models_tasks_of_studies import some_patients

from privacy.noise import noised_counts
from privacy.randomness import CryptographicGenerator
from server.metric_noise import cell_deviation
from server.subgroups import entries, margin_of, released, withheld
from shared_models.configuration import ConfigurationError
from shared_models.layouts import final_layout
from shared_models.study import Study
from shared_models.subgroups import groups_of, num_groups, num_test_statistics, test_sensitivity
from shared_models.tasks.registry import task_of

test_sensitivity.__test__ = False  # type: ignore[attr-defined] - it is no test
GROUPS = 'subgroups = ["sex", "age", "vendor"]\nage_bands = [40, 65]\nvendors = ["Acme", "Globex"]\nmin_subgroup = 10\n'


def grouped(changed: dict[str, str] | None = None, *, private: bool = False, groups: str = GROUPS) -> Study:
    return make_study({"[aggregation]": f"{groups}\n[aggregation]", **(changed or {})}, private=private)


STUDY = grouped()
NAMES = {
    "sex": ("female", "male", "other", "unknown"),
    "age": ("under 40", "40 to 64", "65 and over", "unknown"),
    "vendor": ("Acme", "Globex", "other", "unknown"),
}


def blocks(sizes: dict[str, tuple[int, ...]], study: Study = STUDY) -> np.ndarray:
    """Statistics of groups with these many patients, attribute by attribute."""
    task, parts = task_of(study), []
    for attribute in groups_of(study.evaluation):
        for number, size in enumerate(sizes[attribute]):
            parts.append(task.statistics(*some_patients(study, number, size)))
    return np.concatenate(parts)


def test_the_groups_are_those_that_the_study_names() -> None:
    assert groups_of(STUDY.evaluation) == NAMES
    assert num_groups(STUDY.evaluation) == 12
    assert groups_of(make_study().evaluation) == {}


@given(st.lists(st.integers(0, 60), min_size=2, max_size=8), st.integers(5, 30))
def test_no_small_group_is_shown_and_none_is_the_rest_of_what_is_shown(
    numbers: list[int], floor: int
) -> None:
    gone = withheld(numbers, floor)
    shown = set(range(len(numbers))) - gone
    assert all(numbers[place] >= floor for place in shown)
    rest = sum(numbers) - sum(numbers[place] for place in shown)
    if shown:
        assert rest == 0 or rest >= floor
        assert sum(numbers[place] > 0 for place in gone) != 1


@pytest.mark.parametrize(
    ("numbers", "gone"),
    [
        ((50, 40), set()),
        ((50, 40, 0), {2}),
        ((50, 40, 3), {1, 2}),
        ((50, 40, 3, 2), {1, 2, 3}),
        ((50, 40, 8, 7), {2, 3}),
        ((50, 3), {0, 1}),
    ],
)
def test_as_few_groups_are_withheld_as_it_takes(numbers: tuple[int, ...], gone: set[int]) -> None:
    assert withheld(numbers, 10) == gone


def test_what_is_dropped_is_dropped_before_anything_is_kept() -> None:
    sizes = {"sex": (50, 40, 3, 0), "age": (30, 30, 33, 0), "vendor": (93, 0, 0, 0)}
    told = released(STUDY, blocks(sizes), margin=margin_of(STUDY, num_sites=2))
    assert set(told) == {"sex/female", "age/under 40", "age/40 to 64", "age/65 and over", "vendor/Acme"}
    sex, age, vendor = entries(STUDY, told, num_sites=2)
    assert (sex.attribute, [group.name for group in sex.shown], sex.num_withheld) == ("sex", ["female"], 3)
    assert (len(age.shown), age.num_withheld) == (3, 1)
    assert (len(vendor.shown), vendor.num_withheld) == (1, 3)
    assert sex.shown[0].metrics["num_patients"] == 50
    assert "auroc" in sex.shown[0].intervals


@pytest.mark.slow
@pytest.mark.parametrize("table", [ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS])
def test_with_noise_groups_below_the_floor_are_not_told_of_and_large_ones_are(table: str) -> None:
    """Of 100 sums, each with five groups of no to nine patients. Without a margin two of five such groups were told."""
    study = grouped({ONE_QUESTION: table}, private=True)
    task, num_sites = task_of(study), 3
    deviation = cell_deviation(study, num_sites=num_sites)
    assert deviation is not None
    margin = margin_of(study, num_sites=num_sites)
    large = int(10 + 3 * margin)
    sizes = {"sex": (large, 9, 3, 0), "age": (large, large, large, 0), "vendor": (large, large, 6, large)}
    exact, generator = blocks(sizes, study), CryptographicGenerator(bytes(32))
    small = {"sex/male", "sex/other", "sex/unknown", "age/unknown", "vendor/other"}
    told, without_margin = [], 0
    for _ in range(100):
        noised = noised_counts(
            exact,
            units=np.tile(task.noise_units, num_groups(study.evaluation)),
            standard_deviation=deviation,
            generator=generator,
        )
        told.append(set(released(study, noised, margin=margin)))
        numbers = [task.metrics(block)["num_patients"] for block in noised.reshape(-1, task.num_statistics)]
        without_margin += sum((numbers[place] or 0.0) >= 10 for place in (1, 2, 3, 7, 10))
    assert sum(len(names & small) for names in told) <= 5, "0.0013 of 500 are 0.7"
    assert without_margin > 100
    assert sum({"age/under 40", "age/40 to 64", "age/65 and over"} <= names for names in told) >= 95


@pytest.mark.parametrize("table", [ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS])
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 500), st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_one_patient_changes_what_the_final_test_releases_by_at_most_the_sensitivity(
    table: str, seed: int, own: list[int]
) -> None:
    from client.evaluation import group_statistics

    study = grouped({ONE_QUESTION: table})
    task, random = task_of(study), np.random.default_rng(seed)
    scores, labels = some_patients(study, seed, 9)
    groups = random.integers(0, 4, (9, 3))
    groups[-1] = own

    def all_of(num: int) -> np.ndarray:
        parts = group_statistics(
            scores[:num], labels[:num], groups[:num], task=task, evaluation=study.evaluation
        )
        return np.concatenate([task.statistics(scores[:num], labels[:num]), parts])

    change = (all_of(9) - all_of(8)) / np.tile(task.noise_units, 13)
    assert len(change) == num_test_statistics(study)
    assert np.linalg.norm(change) <= test_sensitivity(study) + 1e-9
    assert test_sensitivity(study) == pytest.approx(2 * task.l2_sensitivity)


def test_each_attribute_adds_up_to_all_patients() -> None:
    from client.evaluation import group_statistics

    task, random = task_of(STUDY), np.random.default_rng(1)
    scores, labels = some_patients(STUDY, 1, 30)
    parts = group_statistics(
        scores, labels, random.integers(0, 4, (30, 3)), task=task, evaluation=STUDY.evaluation
    )
    for of_attribute in parts.reshape(3, 4, -1):
        assert (of_attribute.sum(axis=0) == task.statistics(scores, labels)).all()


def test_the_noise_of_the_final_test_is_scaled_to_the_groups_and_the_layout_has_room_for_them() -> None:
    plain, with_groups = make_study(private=True), grouped(private=True)
    before, after = (cell_deviation(study, num_sites=3) for study in (plain, with_groups))
    assert before is not None
    assert after == pytest.approx(2 * before)
    size = task_of(STUDY).num_statistics
    assert final_layout(make_study()).num_statistics == 2 * size
    assert final_layout(STUDY).num_statistics == 14 * size


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ('subgroups = ["sex"]\n', "min_subgroup belongs to subgroups"),
        ("min_subgroup = 10\n", "min_subgroup belongs to subgroups"),
        ('subgroups = ["sex"]\nmin_subgroup = 4\n', "greater than or equal to 5"),
        ('subgroups = ["age"]\nmin_subgroup = 10\n', "age_bands belongs to"),
        ('subgroups = ["sex"]\nage_bands = [40]\nmin_subgroup = 10\n', "age_bands belongs to"),
        ('subgroups = ["age"]\nage_bands = [40, 40]\nmin_subgroup = 10\n', "strictly increasing"),
        ('subgroups = ["age"]\nage_bands = [90]\nmin_subgroup = 10\n', "less than or equal to 89"),
        ('subgroups = ["vendor"]\nmin_subgroup = 10\n', "vendors belongs to"),
        ('subgroups = ["vendor"]\nvendors = ["A", "a"]\nmin_subgroup = 10\n', "must differ"),
        ('subgroups = ["vendor"]\nvendors = ["Other"]\nmin_subgroup = 10\n', "are there anyway"),
        ('subgroups = ["sex", "sex"]\nmin_subgroup = 10\n', "twice"),
        ('subgroups = ["race"]\nmin_subgroup = 10\n', "subgroups"),
    ],
)
def test_a_wrong_table_of_groups_is_told_with_what_is_allowed(groups: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        grouped(groups=groups)
