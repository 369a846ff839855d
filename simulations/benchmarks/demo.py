"""The scenario ``demo``, whole or small."""

from shared_models.study import Study
from simulations.scenario import Scenario, read_scenario

NAME = "demo"


def demo(*, quick: bool) -> Scenario:
    """The scenario; with *quick* two rounds of few patients, to see that something works."""
    scenario = read_scenario(NAME)
    if not quick:
        return scenario
    values = scenario.study.model_dump()
    values["training"] |= {"num_rounds": 2}
    values["evaluation"] |= {"validation_rounds": (1, 2)}
    few = scenario.hospitals.model_copy(update={"patients_per_hospital": (240,)})
    return scenario.model_copy(update={"study": Study.model_validate(values), "hospitals": few})
