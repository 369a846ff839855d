"""The server's step: FedAvgM, and the optimizers of the global steps, against torch's own over many rounds."""

import math

import numpy as np
import pytest
import torch
from studies import make_study

from server.aggregation import GlobalModel
from server.checkpoint import Progress, read_checkpoint, write_checkpoint
from shared_models.study import Study, Training

SIZE = 50
DISTRIBUTED = {
    'mode = "local"': 'mode = "distributed"',
    "local_steps = 2": "local_steps = 1",
    'weights = "equal"': 'weights = "patients"\nmax_patients = 100',
    "num_colluding = 0": "num_colluding = 1",
    "num_sites_max = 3": "num_sites_max = 4",
    "min_cohort = 2": "min_cohort = 3",
    "threshold = 2": "threshold = 3",
}


def study(**training: object) -> Study:
    base = make_study(DISTRIBUTED, private=True)
    values = base.model_dump()
    values["training"].update(training)
    return Study.model_validate(values)


def gradients(num: int) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.normal(size=SIZE) for _ in range(num)]


def begin() -> GlobalModel:
    return GlobalModel.begin(np.linspace(-1, 1, SIZE, dtype=np.float32))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"momentum": 0.9, "weight_decay": 0.01},
        {"optimizer": "adam", "weight_decay": 0.1},
        {"schedule": "cosine", "warmup_rounds": 3, "momentum": 0.5},
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"schedule": "linear", "optimizer": "adam"},
    ],
    ids=str,
)
def test_steps_are_those_of_torchs_optimizer_also_over_a_resumption(tmp_path, values) -> None:
    training = study(num_rounds=10, **values).training
    weights = torch.nn.Parameter(torch.from_numpy(begin().weights.astype(np.float64)))
    if training.optimizer != "sgd":
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
        optimizer: torch.optim.Optimizer = kind([weights], lr=1.0, weight_decay=training.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            [weights], lr=1.0, momentum=training.momentum, weight_decay=training.weight_decay
        )
    model = begin()
    for number, gradient in enumerate(gradients(10), start=1):
        model = model.stepped(gradient, training=training, number=number)
        progress = Progress(run_id="run", study_hash="0" * 64)
        write_checkpoint(tmp_path / "checkpoint", progress, model)
        _, model = read_checkpoint(tmp_path / "checkpoint", study_hash="0" * 64)
        weights.grad = torch.from_numpy(gradient)
        optimizer.param_groups[0]["lr"] = training.learning_rate_in(number)
        optimizer.step()
    np.testing.assert_allclose(model.weights, weights.detach().numpy(), atol=2e-6)
    assert model.num_steps == 10


def test_the_learning_rate_rises_then_follows_its_schedule() -> None:
    def rates(**values: object) -> list[float]:
        training = study(num_rounds=6, learning_rate=2.0, **values).training
        return [training.learning_rate_in(number) for number in range(1, 7)]

    assert rates() == [2.0] * 6
    assert rates(warmup_rounds=2) == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    np.testing.assert_allclose(rates(schedule="linear", warmup_rounds=2), [1.0, 2.0, 2.0, 1.5, 1.0, 0.5])
    cosine = [1 + math.cos(math.pi * done / 6) for done in range(6)]
    np.testing.assert_allclose(rates(schedule="cosine"), cosine)


def test_on_a_plateau_the_learning_rate_is_what_its_reductions_leave_of_it() -> None:
    plateau = study(
        num_rounds=6, learning_rate=2.0, schedule="plateau", plateau_factor=0.25, warmup_rounds=2
    ).training
    rates = [plateau.learning_rate_in(number, reductions=max(0, number - 3)) for number in range(1, 6)]
    assert rates == [1.0, 2.0, 2.0, 0.5, 0.125]


def test_the_average_forgets_the_initial_weights_first_and_then_has_a_long_memory() -> None:
    training = study(num_rounds=100, ema_decay=0.9).training
    model, expected = begin(), begin().weights.astype(np.float64)
    for number, gradient in enumerate(gradients(100), start=1):
        model = model.stepped(gradient, training=training, number=number)
        decay = min(0.9, number / (9 + number))
        expected = decay * expected + (1 - decay) * model.weights
    np.testing.assert_allclose(model.average, expected, atol=1e-5)
    assert np.abs(model.average - model.weights).max() > 1e-3


def test_without_an_average_what_is_kept_are_the_weights() -> None:
    model = begin().moved(np.ones(SIZE), momentum=0.0, ema_decay=0.0)
    np.testing.assert_array_equal(model.average, model.weights)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local_steps = 1": "local_steps = 2"}, "training.local_steps = 1"),
        ({"num_colluding = 1": "num_colluding = 0"}, "num_colluding of 1 at least"),
        (
            {'weights = "patients"\nmax_patients = 100': 'weights = "equal"'},
            'aggregation.weights = "patients"',
        ),
        ({"round_timeout": "update_bound = 2.0\nround_timeout"}, "update_bound left out"),
        ({"round_timeout": "server_momentum = 0.5\nround_timeout"}, "server_momentum = 0"),
        (
            {"round_timeout": 'server_optimizer = "adam"\nserver_learning_rate = 0.01\nround_timeout'},
            "server_optimizer and server_learning_rate left out",
        ),
        ({"learning_rate = 0.1": 'learning_rate = 0.1\noptimizer = "adam"\nmomentum = 0.9'}, "has its own"),
        ({"learning_rate = 0.1": "learning_rate = 0.1\nwarmup_rounds = 3"}, "below num_rounds"),
    ],
)
def test_a_distributed_study_that_does_not_fit_together_is_refused(changes, words: str) -> None:
    from studies import study_text

    from shared_models.configuration import ConfigurationError, parse_toml

    text = study_text(DISTRIBUTED, private=True)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(ConfigurationError, match=words.replace(".", r"\.")):
        parse_toml(text, Study, origin="study.toml")


UPDATES = [0.01 * gradient for gradient in gradients(12)]
ADAM = {"round_timeout": 'server_optimizer = "adam"\nserver_learning_rate = 0.02\nround_timeout'}


def adam_study(**training: object) -> Study:
    values = make_study(ADAM).model_dump()
    values["training"] |= {"num_rounds": 12, **training}
    return Study.model_validate(values)


def test_fedadam_is_the_published_formula_also_over_a_resumption(tmp_path) -> None:
    """Written out anew: Reddi et al. (2021), algorithm 2, and Kingma and Ba's correction of the moments."""
    chosen = adam_study(schedule="cosine", warmup_rounds=3)
    weights, first, second = begin().weights.astype(np.float64), np.zeros(SIZE), np.zeros(SIZE)
    model = begin()
    for number, update in enumerate(UPDATES, start=1):
        model = model.after_update(update, study=chosen, number=number)
        write_checkpoint(tmp_path / "checkpoint", Progress(run_id="run", study_hash="0" * 64), model)
        _, model = read_checkpoint(tmp_path / "checkpoint", study_hash="0" * 64)
        first = 0.9 * first + 0.1 * update
        second = 0.99 * second + 0.01 * update**2
        rate = 0.02 * (number / 3 if number <= 3 else (1 + math.cos(math.pi * (number - 4) / 9)) / 2)
        corrected = second / (1 - 0.99**number)
        weights += rate * first / (1 - 0.9**number) / (np.sqrt(corrected) + 1e-8)
    np.testing.assert_allclose(model.weights, weights, atol=1e-5)
    assert np.abs(weights - begin().weights).max() > 0.05


def test_fedadam_heeds_the_direction_of_updates_and_not_their_size() -> None:
    small, large = begin(), begin()
    for number, update in enumerate(UPDATES, start=1):
        small = small.after_update(update, study=adam_study(), number=number)
        large = large.after_update(1000 * update, study=adam_study(), number=number)
    np.testing.assert_allclose(small.weights, large.weights, atol=1e-4)


def test_with_an_adam_at_the_server_sites_keep_their_learning_rate() -> None:
    scheduled = adam_study(schedule="linear", learning_rate=0.3)
    assert {scheduled.learning_rate_at_sites(number) for number in range(1, 13)} == {0.3}
    assert scheduled.training.learning_rate_in(12) < 0.03


def test_the_servers_learning_rate_scales_the_step_along_the_mean_update() -> None:
    values = make_study({"round_timeout": "server_learning_rate = 0.5\nround_timeout"})
    model = begin().after_update(np.ones(SIZE), study=values, number=1)
    np.testing.assert_allclose(model.weights, begin().weights + 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('server_optimizer = "adam"', "needs server_learning_rate"),
        (
            'server_optimizer = "adam"\nserver_learning_rate = 0.1\nserver_momentum = 0.9',
            "leave server_momentum out",
        ),
        ('server_optimizer = "yogi"\nserver_learning_rate = 0.1', "server_optimizer"),
    ],
)
def test_a_server_optimizer_that_does_not_fit_together_is_refused(line: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_study({"round_timeout": f"{line}\nround_timeout"})


def test_a_training_table_of_another_mode_is_as_before() -> None:
    assert (
        Training(num_rounds=1, local_steps=1, sample_rate=1.0, learning_rate=0.1).learning_rate_in(1) == 0.1
    )
