"""What all tasks have in common, tried with a study of each kind."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS, make_study, study_text

from shared_models.architectures import build_model
from shared_models.configuration import ConfigurationError, parse_toml
from shared_models.layouts import final_layout, training_layout
from shared_models.study import Study
from shared_models.study_changes import changes
from shared_models.tasks.registry import task_of
from shared_models.tasks.task import MISSING
from simulations.work_folder import write_study

TABLES = {"binary": ONE_QUESTION, "classes": THREE_CLASSES, "findings": TWO_FINDINGS}


def study_with(table: str, changed: dict[str, str] | None = None, **kwargs: bool) -> Study:
    return make_study({ONE_QUESTION: table, **(changed or {})}, **kwargs)


STUDIES = {name: study_with(table) for name, table in TABLES.items()}
every_task = pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES.keys())


def some_patients(study: Study, seed: int, num: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the task's shape, and labels of which some are not known."""
    task, random = task_of(study), np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(size=(num, task.num_outputs)) * 2)
    low = MISSING if task.label_shape else 0
    labels = random.integers(low, task.num_values, size=(num, *task.label_shape))
    return task.scores(logits).numpy(), labels


@every_task
def test_the_model_has_an_output_for_each_name_and_scores_are_probabilities(study: Study) -> None:
    task = task_of(study)
    logits = build_model(study)(torch.rand(3, 1, 16, 16))
    assert logits.shape == (3, task.num_outputs)
    assert len(task.output_names) == task.num_outputs
    scores = task.scores(logits)
    assert ((scores >= 0) & (scores <= 1)).all()
    if task.activation == "softmax":
        assert torch.allclose(scores.sum(1), torch.ones(3))
    else:
        assert torch.allclose(scores.view(3, -1), logits.sigmoid())


@every_task
def test_statistics_are_whole_numbers_that_add_up_and_fill_the_layout(study: Study) -> None:
    task = task_of(study)
    scores, labels = some_patients(study, 1)
    whole = task.statistics(scores, labels)
    assert (whole == task.statistics(scores[:5], labels[:5]) + task.statistics(scores[5:], labels[5:])).all()
    assert whole.dtype == np.int64
    assert whole.shape == task.noise_units.shape == (task.num_statistics,)
    assert training_layout(study, 2, num_weights=7).num_statistics == task.num_statistics
    assert final_layout(study).num_statistics == 2 * task.num_statistics


@every_task
def test_the_order_of_patients_does_not_matter(study: Study) -> None:
    task = task_of(study)
    scores, labels = some_patients(study, 2)
    assert (task.statistics(scores, labels) == task.statistics(scores[::-1], labels[::-1])).all()


@pytest.mark.slow
@settings(deadline=None)
@given(st.sampled_from(sorted(STUDIES)), st.integers(0, 1000))
def test_whatever_noise_the_metrics_stay_in_their_ranges_and_have_the_names_of_all_tasks(
    kind: str, seed: int
) -> None:
    task, random = task_of(STUDIES[kind]), np.random.default_rng(seed)
    exact = task.statistics(*some_patients(STUDIES[kind], seed))
    noised = exact + np.rint(random.normal(0, 20, exact.shape) * task.noise_units).astype(np.int64)
    for metrics in (task.metrics(exact), task.metrics(noised)):
        assert {"auroc", "accuracy", "balanced_accuracy", "loss", "num_patients"} <= set(metrics)
        for name, value in metrics.items():
            most = np.inf if name.startswith(("num_", "confusion/")) else 5.0 if name == "loss" else 1.0
            least = -1.0 if name.startswith("mcc") else 0.0
            assert value is None or least <= value <= most, name
    assert set(task.metrics(exact)) == set(task.metrics(noised, cut=False))


@every_task
def test_what_is_shown_of_a_task_are_metrics_that_it_has(study: Study) -> None:
    task = task_of(study)
    metrics = task.metrics(task.statistics(*some_patients(study, 3)))
    assert {name for name, _ in task.headings} <= set(metrics)
    if task.parts is not None:
        assert task.parts.names == task.output_names
        shown = {f"{key}/{name}" for key, _ in task.parts.columns for name in task.parts.names}
        assert shown <= set(metrics)


@every_task
def test_an_image_of_which_nothing_is_known_has_no_loss_and_no_gradient(study: Study) -> None:
    task, model = task_of(study), build_model(study)
    labels = torch.full((2, *task.label_shape), float(MISSING))
    losses = task.loss(model(torch.rand(2, 1, 16, 16)), labels)
    assert losses.tolist() == [0.0, 0.0]
    losses.sum().backward()
    assert not any(weight.grad is None or weight.grad.any() for weight in model.parameters())


@every_task
def test_finer_bins_change_no_figure_that_rests_on_a_decision(study: Study) -> None:
    task = task_of(study)
    scores, labels = some_patients(study, 4, num=60)
    rough, fine = (one.metrics(one.statistics(scores, labels)) for one in (task, task.finely_binned()))
    changed = {name.split("/")[0] for name in rough if rough[name] != pytest.approx(fine[name])}
    assert changed <= {"auroc", "average_precision", "brier", "calibration_error"}


@every_task
def test_a_study_that_is_written_and_read_again_is_the_same(study: Study, tmp_path) -> None:
    write_study(tmp_path / "study.toml", study)
    again = parse_toml((tmp_path / "study.toml").read_text(encoding="utf-8"), Study, origin="again")
    assert again == study
    assert again.hash == study.hash
    assert not changes(study, again)


def test_each_value_of_a_task_and_the_order_of_its_classes_are_in_the_hash() -> None:
    one = '  { name = "mass", values = ["mass"] },\n'
    other = [
        THREE_CLASSES.replace(one, "").replace("classes = [\n", "classes = [\n" + one),
        THREE_CLASSES.replace("weight = 2.0", "weight = 2.5"),
        THREE_CLASSES.replace('values = ["mass"]', 'values = ["Mass"]'),
        THREE_CLASSES.replace('name = "mass"', 'name = "Mass"'),
    ]
    assert len({study_with(table).hash for table in [*other, THREE_CLASSES]}) == 5
    assert study_with(THREE_CLASSES + "# a comment\n").hash == STUDIES["classes"].hash


@pytest.mark.parametrize(
    ("table", "changed", "told"),
    [
        (THREE_CLASSES, ('values = ["mass"]', 'values = ["clear"]'), "each value belongs to one class"),
        (THREE_CLASSES, ('name = "mass"', 'name = "opacity"'), "each class needs a name of its own"),
        (THREE_CLASSES, ('name = "mass"', 'name = "mass/node"'), "visible text without /"),
        (THREE_CLASSES, ('name = "mass"', 'name = "mass\\u202e"'), "visible text without /"),
        (THREE_CLASSES, ("weight = 2.0", "weight = 0.0"), "greater than 0"),
        (THREE_CLASSES, ('values = ["mass"]', "values = []"), "at least 1 item"),
        (TWO_FINDINGS, ('name = "effusion"', 'name = "opacity"'), "each finding needs a name of its own"),
        (TWO_FINDINGS, ('negative = ["0"]', 'negative = ["1"]'), "must not share values"),
        (TWO_FINDINGS, ("positive_weight = 3.0", "weight = 3.0"), "is not a known key"),
    ],
)
def test_a_wrong_table_is_told_with_what_is_allowed(table: str, changed: tuple[str, str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        study_with(table.replace(*changed))
    assert "task.classification" not in str(caught.value)


def test_one_class_is_no_choice_and_sixty_five_are_too_many() -> None:
    def classes(num: int) -> str:
        entries = ", ".join(f'{{ name = "class {one}", values = ["{one}"] }}' for one in range(num))
        return f'kind = "multi-class-classification"\nlabel = "finding"\nclasses = [{entries}]\n'

    assert task_of(study_with(classes(64))).num_outputs == 64
    for num, told in ((1, "at least 2 items"), (65, "at most 64 items")):
        with pytest.raises(ConfigurationError, match=told):
            study_with(classes(num))


def test_a_kind_that_there_is_not_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"task\.kind = 'regression': must be one of .*'multi-label"):
        study_with(ONE_QUESTION.replace("binary-classification", "regression"))
    with pytest.raises(ConfigurationError, match=r"task\.kind is missing; add it"):
        study_with(ONE_QUESTION.replace('kind = "binary-classification"\n', ""))


def test_a_key_of_another_kind_is_told_by_its_name_and_line() -> None:
    text = study_text({ONE_QUESTION: THREE_CLASSES + 'positive = ["opacity"]\n'})
    line = text.splitlines().index('positive = ["opacity"]') + 1
    with pytest.raises(ConfigurationError, match=rf"line {line}: task\.positive is not a known key"):
        parse_toml(text, Study, origin="study.toml")


@pytest.mark.parametrize("table", [THREE_CLASSES, TWO_FINDINGS])
def test_a_weight_of_positive_images_is_refused_where_it_would_change_nothing(table: str) -> None:
    with pytest.raises(ConfigurationError, match=r"training\.positive_weight would change nothing"):
        study_with(table, {"learning_rate = 0.1": "learning_rate = 0.1\npositive_weight = 2.0"})


def test_what_changed_in_a_task_is_told_class_by_class() -> None:
    new = THREE_CLASSES.replace("weight = 2.0", "weight = 3.0").replace(
        '  { name = "mass", values = ["mass"] },\n', '  { name = "nodule", values = ["mass"] },\n'
    )
    told = {one.sentence for one in changes(STUDIES["classes"], study_with(new))}
    assert told == {
        "names of the classes, in their order (task.classes.name): clear lungs, opacity, mass → "
        "clear lungs, opacity, nodule",
        "weight in the loss of the class “opacity” (task.classes.weight): 2.0 → 3.0",
        "values that mean the class “nodule” (task.classes.values): none → mass",
        "weight in the loss of the class “nodule” (task.classes.weight): none → 1.0",
        "values that mean the class “mass” (task.classes.values): mass → none",
        "weight in the loss of the class “mass” (task.classes.weight): 1.0 → none",
    }


def test_another_kind_of_task_is_told_with_all_that_it_brings() -> None:
    told = {one.key for one in changes(STUDIES["binary"], STUDIES["findings"])}
    assert {"task.kind", "task.label", "task.positive", "task.findings.name", "task.findings.column"} <= told


# The focal loss


def focal(table: str, focusing: float) -> str:
    return f"{table}focusing = {focusing}\n"


SEVERAL = pytest.mark.parametrize("table", [THREE_CLASSES, TWO_FINDINGS], ids=["classes", "findings"])


@SEVERAL
def test_the_focal_loss_is_the_cross_entropy_of_each_label_times_the_cube_of_what_is_left(table: str) -> None:
    """Tried with one known finding at a time, so that the loss is that of one label."""
    plain, cubed = task_of(study_with(table)), task_of(study_with(focal(table, 3.0)))
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, plain.num_outputs, generator=generator, dtype=torch.float64)
    scores = plain.scores(logits)
    for value in range(plain.num_values):
        for finding in range(plain.label_shape[0] if plain.label_shape else 1):
            labels = torch.full((6, *plain.label_shape), float(value), dtype=torch.float64)
            if plain.label_shape:
                labels[:, [one for one in range(plain.label_shape[0]) if one != finding]] = MISSING
                true = scores[:, finding] if value else 1 - scores[:, finding]
            else:
                true = scores[:, value]
            expected = plain.loss(logits, labels) * (1 - true) ** 3
            assert torch.allclose(cubed.loss(logits, labels), expected)


@SEVERAL
@pytest.mark.parametrize("focusing", [1.0, 1.5, 10.0])
def test_the_gradient_of_the_focal_loss_is_finite_however_sure_the_model_is(
    table: str, focusing: float
) -> None:
    task = task_of(study_with(focal(table, focusing)))
    for size in (0.0, 20.0, 1e4):
        for value in range(task.num_values):
            logits = (torch.eye(task.num_outputs)[[0, -1]] * size).requires_grad_()
            task.loss(logits, torch.full((2, *task.label_shape), float(value))).sum().backward()
            assert logits.grad is not None
            assert logits.grad.isfinite().all()


def test_an_exponent_whose_gradient_would_not_be_finite_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"task\.focusing = 0\.5: must be 0, which is cross-entropy, or"
    ):
        study_with(focal(THREE_CLASSES, 0.5))
