"""A scenario: which hospitals, which study, which seed. One file runs in every engine."""

from importlib.resources import files
from pathlib import Path

from pydantic import Field

from shared_models.configuration import ConfigurationError, Frozen, parse_toml, read_toml
from shared_models.study import Study
from simulations.preparation.sources import Source


class Scenario(Frozen):
    """A study and the hospitals that run it.

    ``seed`` fixes the preparation of the hospitals, the roles of their patients and, in studies without privacy,
    the sampling of patients; with privacy, noise and sampling come from the operating system.
    """

    title: str = Field(min_length=1)
    seed: int = Field(ge=0, lt=2**31)
    hospitals: Source
    study: Study


def built_in_scenarios() -> tuple[str, ...]:
    """Names of the scenarios that come with Collegium."""
    folder = files("simulations") / "scenarios"
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    )


def read_scenario(name_or_path: str) -> Scenario:
    """Read a scenario by built-in name or by path.

    Raises:
        ConfigurationError: no such scenario, or a wrong file, with every problem of it.
    """
    if name_or_path in built_in_scenarios():
        text = (files("simulations") / "scenarios" / f"{name_or_path}.toml").read_text(encoding="utf-8")
        return parse_toml(text, Scenario, origin=f"scenario {name_or_path}")
    path = Path(name_or_path)
    if not path.exists():
        raise ConfigurationError(
            f"{name_or_path}: no scenario of that name and no such file; "
            f"built in are {', '.join(built_in_scenarios())}"
        )
    return read_toml(path, Scenario)
