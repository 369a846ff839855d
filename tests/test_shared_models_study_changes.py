"""What changed between two versions of a study, and text of others that is shown."""

import pytest
from studies import make_study
from test_docs import keys_of

from shared_models.study import Study
from shared_models.study_changes import OTHER_UNIT, WEAKER, WORDS, changes
from shared_models.visible_text import visible


def test_every_field_of_a_study_has_words() -> None:
    assert set(WORDS) == keys_of(Study)


def test_the_same_study_has_no_changes() -> None:
    assert changes(make_study(), make_study()) == ()


def test_each_value_that_differs_is_named_once_with_both_values() -> None:
    new = make_study({"num_rounds = 3": "num_rounds = 4", '["opacity"]': '["opacity", "mass"]'})
    found = changes(make_study(), new)
    assert [(one.key, one.old, one.new) for one in found] == [
        ("task.positive", "opacity", "opacity, mass"),
        ("training.num_rounds", "3", "4"),
    ]
    assert found[1].sentence == "rounds (training.num_rounds): 3 → 4"


def test_a_change_in_the_last_digit_is_not_rounded_away() -> None:
    (one,) = changes(make_study(), make_study({"learning_rate = 0.1": "learning_rate = 0.10000000001"}))
    assert (one.old, one.new) == ("0.1", "0.10000000001")


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"epsilon = 5.0": "epsilon = 5.1"}, "privacy.epsilon"),
        ({"delta = 1e-4": "delta = 1e-3"}, "privacy.delta"),
        ({"\nepsilon = 4.0": "\nepsilon = 4.5"}, "evaluation.epsilon"),
        ({"\nepsilon = 4.0": "\nunnoised = true"}, "evaluation.unnoised"),
        ({"min_cohort = 2": "min_cohort = 3"}, "aggregation.min_cohort"),
        (
            {"num_sites_max = 3": "num_sites_max = 4", "threshold = 2": "threshold = 3"},
            "aggregation.threshold",
        ),
        (
            {
                "min_cohort = 2": "min_cohort = 3",
                "threshold = 2": "threshold = 3",
                "num_colluding = 0": "num_colluding = 1",
            },
            "aggregation.num_colluding",
        ),
    ],
)
def test_what_weakens_protection_is_marked_in_that_direction_only(changed: dict[str, str], key: str) -> None:
    one, other = make_study(private=True), make_study(changed, private=True)
    lower_is_weaker = key.startswith("aggregation")
    weaker, stronger = (
        (changes(other, one), changes(one, other))
        if lower_is_weaker
        else (changes(one, other), changes(other, one))
    )
    assert key in [change.key for change in weaker if change.note == WEAKER]
    assert key not in [change.key for change in stronger if change.note == WEAKER]


@pytest.mark.parametrize(
    ("stricter", "looser"),
    [
        ("", 'burned_in = "use"'),
        ('burned_in = "require-no"', ""),
        ('burned_in = "require-no"', 'burned_in = "use"'),
        ("", 'shared_pixels = "use"'),
    ],
)
def test_images_that_identify_somebody_and_that_are_let_in_are_marked(stricter: str, looser: str) -> None:
    strict, loose = (make_study({"[model]": f"[quality]\n{lines}\n[model]"}) for lines in (stricter, looser))
    assert [one.note for one in changes(strict, loose)] == [WEAKER]
    assert [one.note for one in changes(loose, strict)] == [""]


def test_privacy_given_up_and_another_unit_are_marked() -> None:
    marked = {one.key: one.note for one in changes(make_study(private=True), make_study())}
    assert marked["privacy.mode"] == WEAKER
    unit = make_study({'title = "A study for tests"': 'title = "A study for tests"\npatient = "lesion"'})
    (one,) = changes(make_study(), unit)
    assert one.note == OTHER_UNIT


@pytest.mark.parametrize("hidden", ["\x1b[2K", "\r", "\n", "\u202e", "\u200b", "\x00", "\u00a0"])
def test_invisible_characters_of_a_study_are_written_out(hidden: str) -> None:
    shown = visible(f"before{hidden}after")
    assert hidden not in shown
    assert shown.startswith("before\\")
    assert shown.endswith("after")
    (one,) = changes(make_study(), make_study().model_copy(update={"title": f"x{hidden}"}))
    assert hidden not in one.sentence
    assert visible("Lungenrundherde, größer als 6 mm") == "Lungenrundherde, größer als 6 mm"
