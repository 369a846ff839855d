"""Small studies for tests, from one text, so that a test names only what it changes."""

from pathlib import Path

from shared_models.configuration import parse_toml
from shared_models.study import Study

STUDY = """
name = "test-study"
title = "A study for tests"

[task]
kind = "binary-classification"
label = "finding"
positive = ["opacity"]
negative = ["clear"]

[patients]
roles = "hash"
min_training = 1
validation_fraction = 0.2
test_fraction = 0.2

[image]
modalities = ["CR"]
channels = 1
rows = 16
columns = 16

[model]
architecture = "small-cnn"
width = 8
seed = 1

[training]
num_rounds = 3
local_steps = 2
sample_rate = 0.5
learning_rate = 0.1

[privacy]
mode = "none"

[evaluation]
validation_rounds = [1, 3]
num_bins = 20
unnoised = true

[aggregation]
weights = "equal"
num_sites_max = 3
min_cohort = 2
threshold = 2
num_colluding = 0
round_timeout_seconds = 60.0
"""

PRIVATE = {
    'mode = "none"': 'mode = "local"\nepsilon = 5.0\ndelta = 1e-4\nnum_patients = 50\nmax_grad_norm = 1.0',
    "unnoised = true": "epsilon = 4.0",
}


def study_text(changes: dict[str, str] | None = None, *, private: bool = False) -> str:
    """The study's text with each key of *changes* replaced; a key that is not there is an error of the test."""
    text = STUDY
    for old, new in {**(PRIVATE if private else {}), **(changes or {})}.items():
        if old not in text:
            raise AssertionError(f"{old!r} is not in the study")
        text = text.replace(old, new)
    return text


def make_study(changes: dict[str, str] | None = None, *, private: bool = False) -> Study:
    """The study of `study_text`."""
    return parse_toml(study_text(changes, private=private), Study, origin="study.toml")


def write_study_file(path: Path, changes: dict[str, str] | None = None, *, private: bool = False) -> Study:
    """Write the study's text to *path* and return the study."""
    path.write_text(study_text(changes, private=private), encoding="utf-8")
    return make_study(changes, private=private)


ONE_QUESTION = """kind = "binary-classification"
label = "finding"
positive = ["opacity"]
negative = ["clear"]
"""

THREE_CLASSES = """kind = "multi-class-classification"
label = "finding"
classes = [
  { name = "clear lungs", values = ["clear"] },
  { name = "opacity", values = ["opacity", "consolidation"], weight = 2.0 },
  { name = "mass", values = ["mass"] },
]
"""

TWO_FINDINGS = """kind = "multi-label-classification"
findings = [
  { name = "opacity", column = "finding", positive = ["opacity"], negative = ["clear"] },
  { name = "effusion", column = "effusion", positive = ["1"], negative = ["0"], positive_weight = 3.0 },
]
"""

ONE_STRUCTURE = """kind = "segmentation"
structures = [{ name = "lesion" }]
"""

TWO_STRUCTURES = """kind = "segmentation"
structures = [
  { name = "liver", values = [1] },
  { name = "tumour", values = [2] },
]
"""
