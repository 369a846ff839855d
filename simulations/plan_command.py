"""``collegium-simulate plan``: what a study would cost in noise, bytes and exchanges, before anybody trains."""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privacy.secure_aggregation.refusals import SecureAggregationError
from privacy.secure_aggregation.terms import Terms
from shared_models.configuration import ConfigurationError
from shared_models.proposal import read_unverified
from shared_models.study import Study
from simulations.preparation.sources import HamSource, PhantomSource
from simulations.scenario import Scenario, built_in_scenarios, read_scenario

if TYPE_CHECKING:  # what this imports takes seconds
    from simulations.plan import Assumed

EPSILONS = (1.0, 3.0, 8.0)


def plan_command(
    *,
    study: Annotated[
        str, typer.Argument(help="A study.toml, a proposal, or a scenario: its name or its file.")
    ],
    patients: Annotated[
        str | None,
        typer.Option(
            help="Training patients of all sites together, or of each: 500,300,200.",
            show_default="the scenario's, or the fewest that the study allows",
        ),
    ] = None,
    num_sites: Annotated[
        int | None, typer.Option("--sites", show_default="the scenario's, or num_sites_max")
    ] = None,
    epsilons: Annotated[
        list[float] | None,
        typer.Option("--epsilon", help="To compare; may be repeated.", show_default="1, 3, 8"),
    ] = None,
    tested: Annotated[
        int | None,
        typer.Option(
            "--test-patients",
            min=2,
            help="Patients of the final test, of all sites.",
            show_default="by the study's fractions, where roles are drawn",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts: docs/plan.md.")] = False,
) -> None:
    """Say what a study would cost in noise, bytes and exchanges, before anybody trains."""
    chosen, scenario = _read(study)
    assumed = _assumed(chosen, scenario, patients=patients, num_sites=num_sites, tested=tested)
    if wrong := [value for value in epsilons or () if not 0.0 < value <= 100.0]:
        raise ConfigurationError(f"--epsilon {wrong[0]:g}: must lie above 0 and not above 100")
    from simulations.plan import make_plan
    from simulations.plan_text import print_plan

    made = make_plan(chosen, assumed, epsilons=tuple(epsilons or EPSILONS))
    if as_json:
        typer.echo(made.model_dump_json(indent=2, by_alias=True))
    else:
        print_plan(made)


# What to plan


def _read(name: str) -> tuple[Study, Scenario | None]:
    """The study that is meant, and the scenario that it is of, if it is."""
    path = Path(name)
    if name in built_in_scenarios() or not path.is_file() or _is_scenario(path):
        scenario = read_scenario(name)
        return scenario.study, scenario
    return read_unverified(path), None


def _is_scenario(path: Path) -> bool:
    try:
        return bool({"hospitals", "study"} & set(tomllib.loads(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False  # reading it as a study tells what is wrong


def _assumed(
    study: Study,
    scenario: Scenario | None,
    *,
    patients: str | None,
    num_sites: int | None,
    tested: int | None,
) -> "Assumed":
    from simulations.plan import Assumed

    given = _numbers(patients)
    if len(given) > 1 and num_sites not in (None, len(given)):
        raise ConfigurationError(f"--patients names {len(given)} sites, --sites {num_sites}; leave one out")
    num = (len(given) if len(given) > 1 else num_sites) or _usual_number(study, scenario)
    terms = Terms.of(study.aggregation)
    try:
        terms.check(num)
    except SecureAggregationError as error:
        raise ConfigurationError(f"a run with {num} sites is not possible in this study: {error}") from error
    if given:
        sizes, source = given if len(given) > 1 else _spread(given[0], num), "given"
    elif (known := _of_scenario(study, scenario)) and len(known) == num:
        sizes, source = known, "scenario"
    else:
        sizes, source = (study.patients.min_training,) * num, "least"
    return Assumed(
        names=tuple(f"hospital-{number}" for number in range(1, num + 1)),
        sizes=sizes,
        source=source,  # type: ignore[arg-type]
        num_tested=tested or _tested(study, sum(sizes)),
    )


def _numbers(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigurationError(
            f"--patients {text!r}: must be a whole number, or one for each site with commas between"
        ) from error
    if min(numbers) < 1:
        raise ConfigurationError(f"--patients {text}: each number must be 1 at least")
    return numbers


def _usual_number(study: Study, scenario: Scenario | None) -> int:
    if scenario is None or isinstance(scenario.hospitals, HamSource):
        return study.aggregation.num_sites_max
    return scenario.hospitals.num_hospitals


def _spread(num_patients: int, num_sites: int) -> tuple[int, ...]:
    if num_patients < num_sites:
        raise ConfigurationError(f"--patients {num_patients}: fewer than the {num_sites} sites")
    whole, rest = divmod(num_patients, num_sites)
    return tuple(whole + (number < rest) for number in range(num_sites))


def _of_scenario(study: Study, scenario: Scenario | None) -> tuple[int, ...]:
    """Training patients of the hospitals that a scenario makes up; nothing where only its images tell."""
    if (
        scenario is None
        or not isinstance(scenario.hospitals, PhantomSource)
        or study.patients.roles != "hash"
    ):
        return ()
    share = 1.0 - study.patients.validation_fraction - study.patients.test_fraction
    return tuple(max(1, round(share * number)) for number in scenario.hospitals.num_patients)


def _tested(study: Study, num_training: int) -> int | None:
    patients = study.patients
    if patients.roles != "hash":
        return None
    share = 1.0 - patients.validation_fraction - patients.test_fraction
    tested = round(num_training / share * patients.test_fraction)
    return tested if tested >= 2 else None
