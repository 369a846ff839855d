"""study.toml: its hash, and what a wrong one is told."""

import pytest
from studies import make_study, study_text

from shared_models.configuration import ConfigurationError, parse_toml, read_toml
from shared_models.study import Study, read_study
from simulations.work_folder import write_study


def problems(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse_toml(text, Study, origin="study.toml")
    return str(caught.value)


def test_every_problem_is_told_at_once_with_key_value_bound_and_line() -> None:
    text = study_text(
        {"num_rounds = 3": "num_rounds = 0", "sample_rate = 0.5": "sample_rate = 1.5\ncolour = 1"}
    )
    message = problems(text)
    lines = text.splitlines()
    assert "3 problems" in message
    assert f"line {lines.index('num_rounds = 0') + 1}: training.num_rounds = 0" in message
    assert "greater than or equal to 1" in message
    assert f"line {lines.index('sample_rate = 1.5') + 1}: training.sample_rate = 1.5" in message
    assert f"line {lines.index('colour = 1') + 1}: training.colour is not a known key" in message


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("sample_rate = 0.5", "sample_rate = nan", "finite number"),
        ("sample_rate = 0.5", "sample_rate = inf", "finite number"),
        ("sample_rate = 0.5", 'sample_rate = "0.5"', "valid number"),
        ("num_rounds = 3", "num_rounds = 3.0", "valid integer"),
        ('name = "test-study"', 'name = "Test Study"', "pattern"),
        ('positive = ["opacity"]', 'positive = ["clear"]', "must not share values"),
        ("validation_rounds = [1, 3]", "validation_rounds = [3, 1]", "strictly increasing"),
        ("validation_rounds = [1, 3]", "validation_rounds = [1, 4]", "outside 1..num_rounds (3)"),
        ('mode = "none"', 'mode = "none"\nepsilon = 3.0', 'mode "none" protects nothing'),
        ('mode = "none"', 'mode = "local"\nepsilon = 3.0', "needs delta, max_grad_norm"),
        ("unnoised = true", "", "say exactly one of"),
        ("unnoised = true", "epsilon = 1.0", 'needs privacy.mode = "local"'),
        ("min_cohort = 2", "min_cohort = 5", "must not exceed num_sites_max"),
        ('weights = "equal"', 'weights = "patients"', "max_patients belongs to"),
        (
            'weights = "equal"',
            'weights = "patients"\nmax_patients = 1000000',
            "fewer than 65536 steps of its grid",
        ),
        ("test_fraction = 0.2", "test_fraction = 0.8", "must stay below 1"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(old: str, new: str, told: str) -> None:
    assert told in problems(study_text({old: new}))


def test_a_missing_table_is_told_by_name() -> None:
    assert "evaluation is missing" in problems(study_text({"[evaluation]": "[evaluation_]"}))


def test_text_that_is_not_toml_is_told_with_its_line(tmp_path) -> None:
    path = tmp_path / "study.toml"
    path.write_text("name = \n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"study.toml: is not valid TOML.*line 1"):
        read_study(path)


def test_a_missing_file_is_told_by_path(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere.toml: cannot be read"):
        read_toml(tmp_path / "nowhere.toml", Study)


def test_the_hash_does_not_depend_on_order_comments_or_written_out_defaults() -> None:
    plain = make_study()
    padded = parse_toml(
        "# a comment\n" + study_text({"columns = 16": 'columns = 16 # sixteen\naspect = "pad"'}),
        Study,
        origin="study.toml",
    )
    assert plain.hash == padded.hash


@pytest.mark.parametrize(
    "change",
    [
        {"num_rounds = 3": "num_rounds = 4"},
        {"sample_rate = 0.5": "sample_rate = 0.5000000001"},
        {'title = "A study for tests"': 'title = "A study for test"'},
        {"width = 8": "width = 16"},
    ],
)
def test_a_change_in_one_place_changes_the_hash(change: dict[str, str]) -> None:
    assert make_study(change).hash != make_study().hash


def test_the_hash_is_the_same_in_every_version() -> None:
    """A golden value: if it changes, sites with different versions no longer agree on any study."""
    assert make_study().hash == "75ae55f5004440caa979335bfd079e1364fcdf8bf09f6c6eac3819df4486ba81"


def test_a_study_written_by_a_simulation_reads_back_with_the_same_hash(tmp_path) -> None:
    study = make_study(private=True)
    write_study(tmp_path / "study.toml", study)
    assert read_study(tmp_path / "study.toml").hash == study.hash
