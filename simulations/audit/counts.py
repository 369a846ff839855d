"""The other figures that leave about patients: the noised count, and statistics of validation and test patients."""

import dp_accounting as dp
import numpy as np
import torch
from dp_accounting import pld

from client.budget import evaluation_cost, noised_count
from client.local_round import OpenRun, evaluate_role
from client.patients import PatientSet
from client.roles import Role
from client.training import Machine
from privacy.accounting import COUNT_STANDARD_DEVIATION
from privacy.audit.gaussian import mean_square_interval
from shared_models.architectures import outline
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from simulations.audit.findings import Finding, Findings, Keys
from simulations.audit.patients import patient_set, random_images
from simulations.audit.release import Doubles

MANY = 200
_FALSE_ALARM = 2e-6
_COUNTS, _RELEASES, _PATIENTS = 5000, 200, 10


def count(study: Study, keys: Keys) -> Findings:
    """The number of training patients has its noise, and is never below the study's floor."""
    floor, generator = study.patients.min_training, keys()
    exact = floor + round(20 * COUNT_STANDARD_DEVIATION)
    noised = np.array([noised_count(exact, study=study, generator=generator) for _ in range(_COUNTS)])
    lowest = min(noised_count(floor, study=study, generator=generator) for _ in range(_COUNTS))
    return (
        _variance(noised - exact, np.full(_COUNTS, COUNT_STANDARD_DEVIATION), "count of training patients"),
        Finding(
            what="smallest count of a hospital with the fewest patients allowed",
            seen=lowest,
            least=floor,
        ),
    )


def evaluation(study: Study, keys: Keys) -> Findings:
    """Statistics of evaluated patients have their noise, and one patient moves them as little as is claimed."""
    cost, task = evaluation_cost(study), task_of(study)
    if cost is None or study.privacy.delta is None:
        return ()
    own = random_images(_PATIENTS + 1, study.image.shape, keys())
    several = [image[None] for image in own[:-1]]
    labels = [number % task.num_values for number in range(_PATIENTS)]
    patients = patient_set(several, labels, task)
    exact = _released(study, patients, None, keys)
    noise = np.stack(
        [_released(study, patients, cost.standard_deviation, keys) - exact for _ in range(_RELEASES)]
    )
    scale = cost.standard_deviation * task.l2_sensitivity * task.noise_units
    moved = max(
        float(np.linalg.norm((_released(study, more, None, keys) - exact) / task.noise_units))
        for label in range(task.num_values)
        for more in [patient_set([*several, torch.cat([own[-1:]] * MANY)], [*labels, label], task)]
    )
    accountant = pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp.GaussianDpEvent(cost.standard_deviation), cost.num_releases)
    return (
        _variance(noise, np.broadcast_to(scale, noise.shape), "statistics of evaluated patients"),
        Finding(
            what=f"change of them by a patient with {MANY} images, in units of noise",
            seen=moved,
            most=task.l2_sensitivity,
        ),
        Finding(
            what=f"epsilon of {cost.num_releases} releases of them, recomputed",
            seen=float(accountant.get_epsilon(study.privacy.delta)),
            most=study.evaluation.epsilon,
        ),
    )


def _released(study: Study, patients: PatientSet, deviation: float | None, keys: Keys) -> Doubles:
    machine = Machine(device=torch.device("cpu"), physical_batch=64, mixed_precision=False)
    run = OpenRun(
        run_id="audit",
        study=study,
        task=task_of(study),
        model=outline(study),
        patients={Role.VALIDATION: patients},
        num_patients=len(patients),
        cost=None,
        evaluation_deviation=deviation,
        machine=machine,
    )
    return evaluate_role(run, Role.VALIDATION, generator=keys()).statistics.astype(np.float64)


def _variance(noise: Doubles, scale: Doubles, what: str) -> Finding:
    """Rounded to whole numbers, which adds a variance of 1/12."""
    least, most = mean_square_interval(noise.size, false_alarm=_FALSE_ALARM)
    return Finding(
        what=f"{what}: variance / claimed",
        seen=float(np.mean(noise**2 / (scale**2 + 1.0 / 12.0))),
        least=least,
        most=most,
        false_alarm=_FALSE_ALARM,
    )
