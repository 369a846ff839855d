"""Which vector a round carries: site and server derive it from the study, so that neither has to be told."""

from shared_models.study import Study
from shared_models.subgroups import num_test_statistics
from shared_models.tasks.registry import task_of
from shared_models.vector import VectorLayout


def training_layout(study: Study, number: int, *, num_weights: int) -> VectorLayout:
    """The vector of training round *number*: with statistics where the study validates the round before it."""
    validated = number - 1 in study.evaluation.validation_rounds
    return VectorLayout.of_study(
        study,
        num_weights=num_weights,
        num_statistics=task_of(study).num_statistics if validated else 0,
    )


def carries_average(study: Study, number: int) -> bool:
    """Whether training round *number* brings, behind the weights to train, other ones to validate."""
    return study.training.ema_decay > 0.0 and number - 1 in study.evaluation.validation_rounds


def final_layout(study: Study) -> VectorLayout:
    """The vector of the final test: statistics only, those of validation first where the last round has it.

    Those of the test are of all test patients, then of each group that the study names.
    """
    also_validation = study.training.num_rounds in study.evaluation.validation_rounds
    validation = task_of(study).num_statistics if also_validation else 0
    return VectorLayout.of_study(study, num_weights=0, num_statistics=validation + num_test_statistics(study))
