"""All checks, in jobs that share what they need, on several processes."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from client.device import prepare_torch
from client.global_step import check_noise_share
from client.site_file import Compute
from privacy.accounting import PrivacyTargetError
from privacy.clipping import UnsupportedModelError, check_supported
from privacy.noise_share import GridError
from privacy.randomness import CryptographicGenerator
from server.result import versions
from shared_models.architectures import outline
from shared_models.configuration import ConfigurationError
from shared_models.manifest import Manifest
from shared_models.study import Study
from simulations.audit.accountant import accountant
from simulations.audit.canaries import one_run
from simulations.audit.contributions import clipping, coupling
from simulations.audit.counts import count, evaluation
from simulations.audit.findings import Audit, Check, Findings, Keys
from simulations.audit.inversion import Reconstruction, inversion, reconstruct
from simulations.audit.sampling import inclusion, independence, watch_samples
from simulations.audit.short_run import ShortRun
from simulations.audit.silence import Silence, calibration, correlations, each_site, reuse, variance
from simulations.scenario import Scenario
from simulations.workers import in_processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a check claims if it is all right, and where the claim or the attack is from."""

    claim: str
    source: str


CHECKS: Mapping[str, Statement] = {
    "calibration": Statement(
        claim="The sum that the server opens has the noise that the study claims, whoever vanishes.",
        source="Dwork and Roth (2014), appendix A: the Gaussian mechanism",
    ),
    "each-hospital": Statement(
        claim="Each hospital adds its own noise, all that is asked of it and not more.",
        source="Dwork and Roth (2014), appendix A: the Gaussian mechanism",
    ),
    "reuse": Statement(
        claim="No noise is used twice: by two hospitals, in two rounds, in two places of a vector, after a restart.",
        source="independence of the releases that are composed",
    ),
    "clipping": Statement(
        claim="A patient moves a step's sum by at most the clipping bound, with any number of images and any pixels.",
        source="Abadi et al. (2016), algorithm 1, with the patient as its unit",
    ),
    "coupling": Statement(
        claim="What a patient contributes does not depend on who else is in the batch.",
        source="the sensitivity of a sum of clipped gradients, which is that of one",
    ),
    "inclusion": Statement(
        claim="Each patient is in a step with the study's probability, whatever the number of that patient's images.",
        source="Abadi et al. (2016), section 3.1: Poisson sampling",
    ),
    "independence": Statement(
        claim="Patients are sampled independently of each other, and of the steps before.",
        source="Abadi et al. (2016), section 3.1: Poisson sampling",
    ),
    "accountant": Statement(
        claim="Hospitals have charged every step that they made, before its result left, across restarts.",
        source="Koskela, Jälkö and Honkela (2020): privacy loss distributions",
    ),
    "one-run": Statement(
        claim="Who knows everything but who was in the data cannot show more than epsilon, from all rounds of a run.",
        source="Steinke, Nasr and Jagielski (2023), arXiv 2305.08846, corollary 5.4",
    ),
    "inversion": Statement(
        claim="Two attacks that get a picture from a gradient get none from what the server sees of a round.",
        source="Phong et al. (2018); Zhu, Liu and Han (2019); Geiping et al. (2020)",
    ),
    "count": Statement(
        claim="The number of training patients leaves with its noise only.",
        source="Dwork and Roth (2014), appendix A: the Gaussian mechanism",
    ),
    "evaluation": Statement(
        claim="Statistics of validation and test patients leave with their noise only.",
        source="Dwork and Roth (2014), appendix A: the Gaussian mechanism",
    ),
}
"""In the order in which they are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a job found, by check, and the pictures that an attack made."""

    findings: Mapping[str, Findings]
    pictures: tuple[Reconstruction, ...] = field(default=(), repr=False)


Job: TypeAlias = Callable[[Study, Keys], Outcome]


def attacks_on_pictures(study: Study, keys: Keys) -> Outcome:
    """Gradient inversion."""
    pictures = reconstruct(study, keys)
    return Outcome(findings={"inversion": inversion(pictures)}, pictures=pictures)


def canaries_in_one_run(study: Study, keys: Keys) -> Outcome:
    """The one-run audit."""
    return Outcome(findings={"one-run": one_run(study, keys)})


def run_with_restarts(study: Study, keys: Keys) -> Outcome:
    """A short run in the local engine; its noise is the hospitals' own."""
    with _quietly():
        run = ShortRun.of(study)
    return Outcome(
        findings={
            "accountant": accountant(study, run),
            "calibration": (variance(run.updates, "moves of the model in a short run: variance / claimed"),),
            "reuse": correlations(run.updates, "moves of the model, with restarts"),
        }
    )


def samples_of_many_steps(study: Study, keys: Keys) -> Outcome:
    """Who is in which step."""
    samples = watch_samples(study, keys)
    return Outcome(findings={"inclusion": inclusion(samples), "independence": independence(samples)})


def single_patients(study: Study, keys: Keys) -> Outcome:
    """What one patient can do."""
    return Outcome(
        findings={
            "clipping": clipping(study, keys),
            "coupling": coupling(study, keys),
            "count": count(study, keys),
            "evaluation": evaluation(study, keys),
        }
    )


def rounds_of_noise(study: Study, keys: Keys) -> Outcome:
    """What hospitals send when no patient says anything."""
    silence = Silence.of(study, keys)
    return Outcome(
        findings={
            "calibration": calibration(silence),
            "each-hospital": each_site(silence),
            "reuse": reuse(silence),
        }
    )


JOBS: tuple[Job, ...] = (
    attacks_on_pictures,
    canaries_in_one_run,
    run_with_restarts,
    samples_of_many_steps,
    single_patients,
    rounds_of_noise,
)
"""The longest first."""


def run_audit(
    scenario: Scenario,
    *,
    name: str,
    num_workers: int,
    tell: Callable[[int, int], None],
    keys: Keys = CryptographicGenerator.from_operating_system,
) -> tuple[Audit, tuple[Reconstruction, ...]]:
    """Run all checks on the study of *scenario*; return what they found, and the pictures of the attacks.

    Args:
        scenario: its hospitals are not looked at: the auditor makes up patients of its own.
        name: of the scenario.
        num_workers: processes.
        tell: called with the number of jobs done and of all.
        keys: of sampling, noise and coin flips; a function of a module, where there are several processes.

    Raises:
        ConfigurationError: the study promises nothing, or hospitals refuse it.
    """
    study = scenario.study
    epsilon, delta = study.privacy.epsilon, study.privacy.delta
    if epsilon is None or delta is None:
        raise ConfigurationError(
            f"{name}: the study has privacy.mode = {study.privacy.mode!r}, which promises nothing that could be "
            "audited; audit a scenario with privacy, for instance demo"
        )
    _check_accepted(study, name)
    outcomes: dict[Job, Outcome] = {}
    tell(0, len(JOBS))
    for job, outcome in _outcomes(study, keys, num_workers):
        outcomes[job] = outcome
        tell(len(outcomes), len(JOBS))
    found = [outcomes[job] for job in reversed(JOBS)]
    checks = tuple(
        Check(
            name=check,
            claim=statement.claim,
            source=statement.source,
            findings=tuple(finding for outcome in found for finding in outcome.findings.get(check, ())),
        )
        for check, statement in CHECKS.items()
    )
    audit = Audit(
        scenario=name,
        study=study.title,
        study_hash=study.hash,
        mode=study.privacy.mode,
        unit=study.patient,
        epsilon=epsilon,
        delta=delta,
        versions=versions(),
        checks=tuple(check for check in checks if check.findings),
    )
    return audit, tuple(picture for outcome in found for picture in outcome.pictures)


def _check_accepted(study: Study, name: str) -> None:
    """What hospitals refuse before anything is charged is never trained."""
    model = outline(study)
    try:
        check_supported(model, image_shape=study.image.shape)
        check_noise_share(study, num_weights=Manifest.of(model).num_weights)
    except (GridError, PrivacyTargetError, UnsupportedModelError) as error:
        raise ConfigurationError(f"{name}: hospitals refuse this study: {error}") from error


def _outcomes(study: Study, keys: Keys, num_workers: int) -> Iterator[tuple[Job, Outcome]]:
    if num_workers == 1:
        for job in JOBS:
            yield job, job(study, keys)
        return
    yield from in_processes(
        partial(_run_job, study, keys), JOBS, num_workers=num_workers, begin=_begin_as_hospital
    )


def _run_job(study: Study, keys: Keys, job: Job) -> Outcome:
    return job(study, keys)


def _begin_as_hospital() -> None:
    prepare_torch(Compute(device="cpu", num_threads=1))


@contextmanager
def _quietly() -> Iterator[None]:
    """Hospitals refuse much in a run in which they are killed and asked twice; that is what is wanted."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
