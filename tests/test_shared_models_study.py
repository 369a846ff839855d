"""study.toml: its hash, and what a wrong one is told."""

import math
import re

import pytest
from pydantic import ValidationError
from studies import make_study, study_text

from privacy.secure_aggregation.refusals import TermsRefused
from privacy.secure_aggregation.terms import Terms
from shared_models.configuration import ConfigurationError, parse_toml, read_toml
from shared_models.study import Aggregation, Study, largest_delta, read_study
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
        ('mode = "none"', 'mode = "local"\nepsilon = 3.0', "needs delta, num_patients, max_grad_norm"),
        ("unnoised = true", "", "say exactly one of"),
        ("unnoised = true", "epsilon = 1.0", "needs a privacy.mode that has a delta"),
        ("min_cohort = 2", "min_cohort = 5", "min_cohort must not exceed num_sites_max"),
        ("threshold = 2", "threshold = 5", "threshold must not exceed num_sites_max"),
        ("num_sites_max = 3", "num_sites_max = 4", "raise threshold to 3, or lower num_sites_max"),
        ("num_colluding = 0", "num_colluding = 1", "so that two honest sites stand in every sum"),
        ("min_cohort = 2", "min_cohort = 1", "greater than or equal to 2"),
        ("threshold = 2", "threshold = 2.0", "valid integer"),
        ("num_colluding = 0", "num_colluding = -1", "greater than or equal to 0"),
        ("threshold = 2", "threshold = 2\nrounds_per_batch = 0", "greater than or equal to 1"),
        ("threshold = 2", "threshold = 2\nmax_burned_rounds = -1", "greater than or equal to 0"),
        ("threshold = 2", "threshold = 2\nstep_timeout_seconds = 0.0", "greater than 0"),
        ('weights = "equal"', 'weights = "patients"', "max_patients belongs to"),
        ("[model]", "[quality]\nmin_rows = 9\nmax_rows = 8\n[model]", "min_rows = 9 exceeds max_rows = 8"),
        ("[model]", "[quality]\nmin_columns = 9\nmax_columns = 8\n[model]", "no image could be used"),
        ("[model]", '[quality]\nunstated = "refuse"\n[model]', "belongs to views or body_parts"),
        ("[model]", '[quality]\nviews = ["pa"]\n[model]', "pattern"),
        ("[model]", "[quality]\nmax_saturated_share = 1.0\n[model]", "less than 1"),
        ("[model]", '[quality]\nburned_in = "no"\n[model]', "'use', 'refuse' or 'require-no'"),
        (
            'weights = "equal"',
            'weights = "patients"\nmax_patients = 1000000',
            "fewer than 65536 steps of its grid",
        ),
        ("test_fraction = 0.2", "test_fraction = 0.8", "must stay below 1"),
        ("width = 8", "angles = 6", 'is of "scattering"'),
        ("width = 8", "scales = 3\nangles = 6", "angles and scales would change nothing"),
        ('"small-cnn"', '"scattering"', 'width would change nothing with "scattering"'),
        (
            '"small-cnn"',
            '"large-cnn"',
            'must be one of "small-cnn", "small-cnn-3d", "scattering", "resnet-18"',
        ),
        ("width = 8", 'stem = "3x3"', 'is of "resnet-18", "resnet-34"'),
        ("width = 8", "last_blocks = 2", 'would change nothing: set trainable = "last-block"'),
        ('"small-cnn"', '"resnet-18"', "with stem = 7x7 wants images of 32 rows and columns"),
        ('"small-cnn"\nwidth = 8', '"unet"\nlevels = 5', "with levels = 5 wants images of 32 rows"),
        (
            '"small-cnn"\nwidth = 8',
            '"scattering"\ntrainable = "head"',
            "trainable would change nothing",
        ),
        (
            '"small-cnn"\nwidth = 8',
            '"scattering"\nweight_standardisation = true',
            'is of "small-cnn", "small-cnn-3d"; leave it out',
        ),
        ('"small-cnn"\nwidth = 8', '"scattering"\nscales = 5', "less than or equal to 4"),
        ('"small-cnn"\nwidth = 8', '"scattering"\nangles = 3', "greater than or equal to 4"),
        (
            'rows = 16\ncolumns = 16\n\n[model]\narchitecture = "small-cnn"\nwidth = 8',
            'rows = 16\ncolumns = 15\n\n[model]\narchitecture = "scattering"\nscales = 4',
            "with scales = 4 wants images of 16 rows and columns at least, slices too, and image says 16 × 15",
        ),
        ("columns = 16", "columns = 16\nslice_spacing = 2.0", "only volumes have it"),
        ('"small-cnn"', '"small-cnn-3d"', "takes volumes: set image.depth"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(old: str, new: str, told: str) -> None:
    assert told in problems(study_text({old: new}))


VOLUME = {
    'architecture = "small-cnn"': 'architecture = "small-cnn-3d"',
    "columns = 16": 'columns = 16\ndepth = 8\nspacing = 2.0\nslice_spacing = 3.0\nintensity = "percentiles"',
}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("slice_spacing = 3.0\n", "", "depth makes volumes, which need slice_spacing, in mm"),
        ("spacing = 2.0\nslice_spacing = 3.0\n", "", "need spacing and slice_spacing"),
        ("channels = 1", "channels = 3", "set channels = 1"),
        ('"percentiles"', '"window"', 'it must be "hounsfield" or "percentiles"'),
        ('"percentiles"', '"full-range"', 'it must be "hounsfield" or "percentiles"'),
        ("depth = 8", 'depth = 8\nframes = "middle"', "frames would change nothing"),
        ("depth = 8", 'depth = 8\norientation = "standard"', "orientation would change nothing"),
        ("depth = 8", 'depth = 8\naspect = "crop"', "would change nothing: with spacing"),
        ("depth = 8", "depth = 7", "greater than or equal to 8"),
        ("depth = 8", "depth = 513", "less than or equal to 512"),
        (
            "rows = 16\ncolumns = 16\ndepth = 8",
            "rows = 1024\ncolumns = 1024\ndepth = 17",
            "must be at most 16777216",
        ),
        ('"small-cnn-3d"', '"small-cnn"', 'takes plane images: take one of "small-cnn-3d", "resnet-18-3d"'),
        (
            '"small-cnn-3d"\nwidth = 8',
            '"scattering"',
            'takes plane images: take one of "small-cnn-3d", "resnet-18-3d"',
        ),
    ],
)
def test_what_means_nothing_for_volumes_is_refused(old: str, new: str, told: str) -> None:
    text = study_text(VOLUME)
    assert old in text
    assert told in problems(text.replace(old, new))


def test_a_prepared_image_has_the_shape_of_the_study() -> None:
    assert make_study().image.shape == (1, 16, 16)
    assert make_study(VOLUME).image.shape == (1, 8, 16, 16)


def test_a_missing_table_is_told_by_name() -> None:
    assert "evaluation is missing" in problems(study_text({"[evaluation]": "[evaluation_]"}))


@pytest.mark.parametrize(
    "line", ["min_cohort = 2", "threshold = 2", "num_colluding = 0", "num_sites_max = 3"]
)
def test_what_the_promise_rests_on_has_no_default(line: str) -> None:
    assert f"aggregation.{line.split(maxsplit=1)[0]} is missing" in problems(study_text({line: ""}))


SMALL = [
    {"num_sites_max": largest, "threshold": threshold, "min_cohort": cohort, "num_colluding": colluding}
    for largest in range(2, 7)
    for threshold in range(1, 8)
    for cohort in range(2, 8)
    for colluding in range(7)
]


def aggregation(constants: dict[str, int]) -> Aggregation:
    return Aggregation.model_validate({"weights": "equal", "round_timeout_seconds": 60.0, **constants})


def protocol_allows(constants: dict[str, int], num_sites: int) -> bool:
    try:
        Terms(**constants, rounds_per_batch=1).check(num_sites)
    except TermsRefused:
        return False
    return True


def test_a_study_can_be_written_just_where_the_protocol_takes_its_largest_cohort() -> None:
    """The bounds stand twice: where a coordinator is told in words, and where a site refuses. For all small values."""
    allowed = []
    for constants in SMALL:
        try:
            found = aggregation(constants)
        except ValidationError:
            assert not protocol_allows(constants, constants["num_sites_max"]), constants
        else:
            assert protocol_allows(constants, constants["num_sites_max"]), constants
            allowed.append(found)
    assert 0 < len(allowed) < len(SMALL)


def test_whatever_a_study_says_holds_for_each_number_of_sites_that_can_come() -> None:
    for constants in SMALL:
        if not protocol_allows(constants, constants["num_sites_max"]):
            continue
        terms = Terms.of(aggregation(constants))
        for num_sites in range(constants["num_sites_max"] + 3):
            comes = terms.least <= num_sites <= terms.num_sites_max
            assert protocol_allows(constants, num_sites) == comes, constants
        assert len(terms.explain()) == terms.num_sites_max - terms.least + 1


def test_the_threshold_that_a_refused_study_is_told_to_take_is_one_that_will_do() -> None:
    told = 0
    for constants in SMALL:
        try:
            aggregation(constants)
        except ValidationError as error:
            found = re.search(r"raise threshold to (\d+)", str(error))
            if found is not None:
                told += 1
                aggregation({**constants, "threshold": int(found[1])})
    assert told


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
        {"threshold = 2": "threshold = 3"},
        {"min_cohort = 2": "min_cohort = 3"},
        {"threshold = 2": "threshold = 2\nrounds_per_batch = 19"},
        {"threshold = 2": "threshold = 2\nmax_burned_rounds = 4"},
        {"threshold = 2": "threshold = 2\nstep_timeout_seconds = 61.0"},
    ],
)
def test_a_change_in_one_place_changes_the_hash(change: dict[str, str]) -> None:
    assert make_study(change).hash != make_study().hash


def test_the_hash_is_the_same_in_every_version() -> None:
    """A golden value: if it changes, sites with different versions no longer agree on any study."""
    assert make_study().hash == "d23539bbd0d48ac1d81676cf5582b6fc599fa8a9ac412cc56a04c2759b9ecb8e"


def test_a_study_written_by_a_simulation_reads_back_with_the_same_hash(tmp_path) -> None:
    study = make_study(private=True)
    write_study(tmp_path / "study.toml", study)
    assert read_study(tmp_path / "study.toml").hash == study.hash


def test_the_largest_delta_lies_below_one_over_the_patients() -> None:
    assert largest_delta(4708) == pytest.approx(math.exp(-1.1 * math.log(4708)))
    assert largest_delta(4708) == pytest.approx(9.1e-5, rel=5e-3)


def test_a_delta_that_is_too_large_for_the_patients_of_the_study_is_refused_with_the_largest() -> None:
    def text(delta: str, num: int) -> str:
        return study_text(
            {"delta = 1e-4\nnum_patients = 50": f"delta = {delta}\nnum_patients = {num}"}, private=True
        )

    assert parse_toml(text("9e-5", 4708), Study, origin="study.toml").privacy.num_patients == 4708
    told = problems(text("1e-4", 4708))
    assert "delta = 0.0001 is too large for num_patients = 4,708" in told
    assert "1/4,708^1.1 = 9.1e-05 at most" in told


@pytest.mark.parametrize("waits", ['schedule = "plateau"\nplateau_patience = 1', "early_stopping = 1"])
def test_exact_validations_decide_nothing_about_a_private_model(waits: str) -> None:
    changes = {
        "learning_rate = 0.1": f"learning_rate = 0.1\n{waits}",
        "validation_rounds = [1, 3]": "validation_rounds = [1, 2]",
    }
    assert make_study(changes, private=True).training.heeds_validations
    told = problems(study_text({**changes, "epsilon = 4.0": "unnoised = true"}, private=True))
    assert "set evaluation.epsilon in place of evaluation.unnoised" in told


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "sample_rate = 0.5",
            'sample_rate = 0.5\nclass_weights = "balanced"',
            "weights are constants of the study",
        ),
        (
            "sample_rate = 0.5",
            'sample_rate = 0.5\npositive_weight = "balanced"',
            "weights are constants of the study",
        ),
        ("sample_rate = 0.5", 'sample_rate = 0.5\nsampler = "weighted"', "each patient is sampled by itself"),
        ("sample_rate = 0.5", "sample_rate = 0.5\nmixup = 0.2", "mix images of different patients"),
        ("width = 8", 'width = 8\nnorm = "batch"', "networks have GroupNorm"),
        ("rows = 16", "rows = 16\nmean = 0.5\nstd = 0.2", "each image is scaled by itself"),
    ],
)
def test_what_would_make_one_patients_gradient_depend_on_others_is_refused_with_that_reason(
    old: str, new: str, told: str
) -> None:
    key = new.splitlines()[1].split(" = ")[0]
    (line, *_) = [
        line for line in problems(study_text({old: new}, private=True)).splitlines() if f".{key}" in line
    ]
    assert told in line
    assert re.search(r"depend on|patients", line)
