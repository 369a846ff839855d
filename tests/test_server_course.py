"""What validations decide: reductions of the learning rate, the end of a run, and the model that is kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_sites import FakeExchange
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from studies import make_study, study_text

from server.checkpoint import read_checkpoint
from server.course import Course
from server.round_loop import run_rounds
from server.run import checkpoint_path, run_study
from server.run_state import RunContext, RunState
from shared_models.architectures import build_model
from shared_models.configuration import ConfigurationError, parse_toml
from shared_models.manifest import flatten
from shared_models.messages import Advertise, Evaluate, Train
from shared_models.study import Study

RATE = "learning_rate = 0.1"
LONG = {
    "num_rounds = 3": "num_rounds = 9",
    "validation_rounds = [1, 3]": "validation_rounds = [1, 2, 3, 4, 5, 6, 7]",
}
STOPPING = make_study({**LONG, RATE: f"{RATE}\nearly_stopping = 2"})
PLATEAU = make_study(
    {**LONG, RATE: f'{RATE}\nschedule = "plateau"\nplateau_factor = 0.1\nplateau_patience = 2'}
)
SHIFTS = {"north": 0.1, "south": 0.3}
BEST_AT_3 = {number: (0.5 + 0.04 * (5 - abs(3 - number)), 0.2) for number in range(1, 10)}
"""Scores of a positive and a negative patient by the round that is validated."""


def course(*losses: float | None) -> Course:
    return Course(tuple(enumerate(losses, start=1)))


@pytest.mark.parametrize(
    ("losses", "patience", "reductions"),
    [
        ((), 1, 0),
        ((1.0, 0.9, 0.8), 1, 0),
        ((1.0, 1.0), 1, 1),
        ((1.0, 1.1, 1.1, 1.1), 1, 3),
        ((1.0, 1.1, 1.1, 1.1), 2, 1),
        ((1.0, 1.1, 1.1, 0.9, 1.0, 1.0), 2, 2),
        ((1.0, None, 0.9, None), 2, 0),
        ((None, None), 2, 1),
    ],
)
def test_the_learning_rate_is_reduced_after_so_many_validations_that_are_no_better(
    losses: Sequence[float | None], patience: int, reductions: int
) -> None:
    training = PLATEAU.training.model_copy(update={"plateau_patience": patience})
    assert course(*losses).reductions(training) == reductions
    assert course(*losses).reductions(STOPPING.training) == 0, "of another schedule nothing is reduced"


@pytest.mark.parametrize(
    ("losses", "best", "ends"),
    [
        ((), None, False),
        ((1.0,), 1, False),
        ((1.0, 1.0), 1, False),
        ((1.0, 0.9, 0.9, 1.0), 2, True),
        ((1.0, 0.9, 1.0, 0.8), 4, False),
        ((1.0, None, None), 1, True),
        ((None, None), None, True),
    ],
)
def test_a_run_ends_after_so_many_validations_without_a_better_one_and_the_first_best_is_kept(
    losses: Sequence[float | None], best: int | None, ends: bool
) -> None:
    assert course(*losses).best_round == best
    assert course(*losses).ends(STOPPING.training) is ends
    assert not course(*losses).ends(PLATEAU.training)


@given(st.lists(st.one_of(st.none(), st.floats(0.0, 5.0)), max_size=7))
def test_a_site_never_refuses_what_an_honest_server_says(losses: list[float | None]) -> None:
    """What the study allows in a round is never less than what validations that were known by then led to."""
    for number in range(1, len(losses) + 3):
        known = course(*losses[: max(0, number - 2)])
        assert known.reductions(PLATEAU.training) <= PLATEAU.most_reductions(number)
    assert STOPPING.most_reductions(9) == 0


# In a run


def context(folder: Path, exchange: FakeExchange, study: Study) -> RunContext:
    return RunContext(
        study=study,
        run_id="run-1",
        exchange=exchange,
        federation=exchange.federation,
        checkpoint=checkpoint_path(folder, "run-1"),
        patience_seconds=0.0,
        start_seconds=0.0,
    )


def shift_of(weights: np.ndarray, study: Study) -> float:
    return float((weights - flatten(build_model(study))).mean())


def test_a_run_ends_early_and_the_model_that_validated_best_is_tested_and_kept(tmp_path: Path) -> None:
    """Models of rounds 4 and 5 are no better than that of round 3; the latter is known with the replies of round 6."""
    exchange = FakeExchange(STOPPING, SHIFTS, scores=BEST_AT_3)
    result = run_study(context(tmp_path, exchange, STOPPING), engine="local")
    asked = [request for site, request in exchange.seen if site == "north"]
    assert [request.round for request in asked if isinstance(request, Train)] == [1, 2, 3, 4, 5, 6]
    assert [request.round for request in asked if isinstance(request, Evaluate)] == [STOPPING.test_round]
    assert len(result.rounds) == 6
    assert result.kept_round == 3
    assert result.test
    checkpoint = checkpoint_path(tmp_path, "run-1")
    progress, model = read_checkpoint(checkpoint, study_hash=STOPPING.hash)
    assert shift_of(model.weights, STOPPING) == pytest.approx(6 * 0.2, abs=1e-5)
    assert model.best is not None
    assert shift_of(model.kept, STOPPING) == pytest.approx(3 * 0.2, abs=1e-5)
    assert progress.test is not None
    kept = load_file(checkpoint.with_name("model.safetensors"))
    named = [kept[name].ravel() for name, _ in build_model(STOPPING).named_parameters()]
    np.testing.assert_array_equal(np.concatenate(named), model.best)


def test_the_best_model_is_kept_where_the_run_goes_to_its_end_too(tmp_path: Path) -> None:
    falling = {number: (0.9 - 0.05 * (number != 6), 0.2) for number in range(1, 10)}
    patient = STOPPING.model_copy(
        update={"training": STOPPING.training.model_copy(update={"early_stopping": 7})}
    )
    state = run_rounds(context(tmp_path, FakeExchange(patient, SHIFTS, scores=falling), patient))
    assert len(state.progress.rounds) == 9
    assert shift_of(state.model.kept, patient) == pytest.approx(6 * 0.2, abs=1e-5)


@pytest.mark.parametrize("done", [4, 5, 6])
def test_a_server_that_is_started_again_decides_the_same(tmp_path: Path, done: int) -> None:
    """Killed as it prepares the next round: before and after the best model is known, and once the end is decided."""
    study = make_study(
        {
            **LONG,
            RATE: f"{RATE}\nearly_stopping = 2",
            "num_sites_max = 3": "num_sites_max = 3\nrounds_per_batch = 1",
        }
    )

    def pull_the_plug(site: str, request: object) -> bytes | None:
        rounds = {other.round for _, other in exchange.seen if isinstance(other, Train)}
        if isinstance(request, Advertise) and len(rounds) == done:
            raise KeyboardInterrupt
        return None

    exchange = FakeExchange(study, SHIFTS, scores=BEST_AT_3, behave=pull_the_plug)
    with pytest.raises(KeyboardInterrupt):
        run_rounds(context(tmp_path, exchange, study))
    again = FakeExchange(study, SHIFTS, scores=BEST_AT_3)
    state: RunState = run_rounds(context(tmp_path, again, study), resume=True)
    assert {request.round for _, request in again.seen if isinstance(request, Train)} == set(
        range(done + 1, 7)
    )
    assert len(state.progress.rounds) == 6
    assert shift_of(state.model.kept, study) == pytest.approx(3 * 0.2, abs=1e-5)
    assert state.progress.test is not None


def test_the_server_tells_the_sites_how_often_the_learning_rate_was_reduced(tmp_path: Path) -> None:
    """No better after round 3: validations 4 and 5 reduce it, known after round 6, and 6 and 7, known after round 8."""
    exchange = FakeExchange(PLATEAU, SHIFTS, scores=BEST_AT_3)
    run_rounds(context(tmp_path, exchange, PLATEAU))
    told = [request.reductions for site, request in exchange.seen
            if site == "north" and isinstance(request, Train)]  # fmt: skip
    assert told == [0, 0, 0, 0, 0, 0, 1, 1, 2]
    assert all(
        reductions <= PLATEAU.most_reductions(number) for number, reductions in enumerate(told, start=1)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({RATE: f"{RATE}\nearly_stopping = 1"}, "the model to be tested is chosen before the final test"),
        (
            {RATE: f"{RATE}\nearly_stopping = 1", "validation_rounds = [1, 3]\n": ""},
            "training.early_stopping waits for validations",
        ),
        (
            {RATE: f'{RATE}\nschedule = "plateau"', "validation_rounds = [1, 3]\n": ""},
            'training.schedule = "plateau" waits for validations',
        ),
        ({RATE: f"{RATE}\nplateau_factor = 0.1"}, 'would change nothing: set schedule = "plateau"'),
        ({RATE: f'{RATE}\noptimizer = "adamw"\nmomentum = 0.5'}, 'optimizer = "adamw" has its own momentum'),
    ],
)
def test_a_study_whose_course_does_not_fit_together_is_refused(changes: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_toml(study_text(changes), Study, origin="study.toml")
