"""A scenario: which hospitals, which study, which seed. One file runs in every engine."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shared_models.configuration import ConfigurationError, Frozen, parse_toml, read_toml
from shared_models.study import Study
from simulations.preparation.sources import Source


class Fault(Frozen):
    """A hospital that vanishes in the middle of a run, once.

    It strikes at the first exchange of its kind in ``round`` or later; the exchanges of a setup belong to the round
    that they prepare. From then on the hospital hears and says nothing, until it is back ``rounds`` rounds later:
    with 1 it misses the rest of that round only.

    Attributes:
        site: name of the hospital.
        when: before, the request does not reach it; after, it does as asked and its reply is lost.
        restart: it comes back without memory, as an agent that was killed.
    """

    site: str = Field(min_length=1)
    round: int = Field(ge=1)
    exchange: Literal["advertise", "share", "escrow", "train", "confirm", "unmask", "evaluate"]
    when: Literal["before", "after"]
    rounds: int = Field(default=1, ge=1)
    restart: bool = False


class Scenario(Frozen):
    """A study and the hospitals that run it.

    ``seed`` fixes the preparation of the hospitals, the roles of their patients and, in studies without privacy,
    the sampling of patients; with privacy, noise and sampling come from the operating system. ``faults`` make
    hospitals vanish, in the local engine. ``weights`` is the folder of initial weights, where the study names a file.
    """

    title: str = Field(min_length=1)
    seed: int = Field(ge=0, lt=2**31)
    hospitals: Source
    study: Study
    weights: Annotated[Path, Field(strict=False)] | None = None
    faults: tuple[Fault, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _weights_are_wanted(self) -> Self:
        if (self.weights is None) != (self.study.model.weights is None):
            raise ValueError(
                "weights, a folder, and study.model.weights, a file in it, belong together: give both or none"
            )
        return self

    @model_validator(mode="after")
    def _faults_can_strike(self) -> Self:
        last = self.study.training.num_rounds
        for number, fault in enumerate(self.faults, start=1):
            first, latest = {"train": (1, last), "evaluate": (last + 1,) * 2}.get(
                fault.exchange, (1, last + 1)
            )
            if not first <= fault.round <= latest:
                raise ValueError(
                    f"fault {number}: no {fault.exchange} in round {fault.round} of {last} and the final test: "
                    f"its round must lie in {first}..{latest}"
                )
        return self


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
    scenario = read_toml(path, Scenario)
    if scenario.weights is None:
        return scenario
    return scenario.model_copy(update={"weights": path.resolve().parent / scenario.weights})
