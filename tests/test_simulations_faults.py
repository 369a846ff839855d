"""Hospitals of a scenario vanish before, between and after exchanges, and come back: with real sites, in each way."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from studies import make_study, study_text
from test_docs import first_cells, page, rows, section

from server.checkpoint import read_checkpoint
from server.exchange import SiteReply
from server.run import checkpoint_path, federation_of, run_study
from server.run_state import RunContext, TooFewSitesError
from shared_models.configuration import ConfigurationError, parse_toml
from shared_models.messages import (
    Advertise,
    Close,
    Confirm,
    Evaluate,
    Request,
    Train,
    Unmask,
    decode_request,
    encode,
)
from shared_models.roster import Roster
from simulations.faults import FaultyExchange, check_names
from simulations.one_process import OneProcessExchange
from simulations.preparation.hospitals import Hospital, prepare, read_hospitals
from simulations.preparation.sources import PhantomSource
from simulations.runner import Display, Options, run_scenario
from simulations.scenario import Fault, Scenario, read_scenario
from simulations.work_folder import enrol, write_site

SEED, RUN = 3, "run-1"
CHANGES = {
    'modalities = ["CR"]': 'modalities = ["CR", "DX"]\nintensity = "percentiles"',
    "min_training = 1": "min_training = 5",
    "num_rounds = 3": "num_rounds = 4",
    "validation_rounds = [1, 3]": "validation_rounds = []",
    "num_sites_max = 3": "num_sites_max = 3\nrounds_per_batch = 1",
}
STUDY = make_study(CHANGES)
"""Every round has its own setup; two of three sites are enough."""
ONE, TWO, THREE = EVERYBODY = ("hospital-1", "hospital-2", "hospital-3")
EXCHANGES = ("advertise", "share", "escrow", "train", "confirm", "unmask")


def fault(exchange: str, when: str = "before", *, number: int = 2, **values: Any) -> Fault:
    return Fault.model_validate({"site": TWO, "round": number, "exchange": exchange, "when": when, **values})


class SitesHere(OneProcessExchange):
    """Real sites in this process, and what they are asked."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        super().__init__(paths)
        self.got: list[tuple[str, Request]] = []

    def ask(self, site: str, message: bytes) -> bytes:
        self.got.append((site, decode_request(message)[0]))
        return super().ask(site, message)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three tiny hospitals."""
    out = tmp_path_factory.mktemp("prepared") / "hospitals"
    source = PhantomSource(num_hospitals=3, patients_per_hospital=(20,), image_size=32)
    prepare(source, out, SEED)
    return out


def consortium(tmp_path: Path, hospitals: Path) -> tuple[SitesHere, Roster]:
    made: tuple[Hospital, ...] = read_hospitals(hospitals).hospitals
    paths = {
        hospital.name: write_site(tmp_path / "sites" / hospital.name, hospital, STUDY, seed=SEED)
        for hospital in made
    }
    roster = enrol(tmp_path / "server", list(paths.values()), STUDY)
    return SitesHere(paths), roster


def run(tmp_path: Path, hospitals: Path, *faults: Fault) -> tuple[dict[str, Any], SitesHere]:
    """Run the study with these faults; return the server's result.json, and the sites."""
    sites, roster = consortium(tmp_path, hospitals)
    checkpoint = checkpoint_path(tmp_path / "server" / "state", RUN)
    context = RunContext(
        study=STUDY,
        run_id=RUN,
        exchange=FaultyExchange(sites, faults),
        federation=federation_of(STUDY, RUN, roster),
        checkpoint=checkpoint,
        patience_seconds=0.0,
        start_seconds=0.0,
    )
    run_study(context, engine="local")
    return json.loads((checkpoint.parent / "result.json").read_text(encoding="utf-8")), sites


def survivors(result: dict[str, Any]) -> list[tuple[str, ...]]:
    return [tuple(entry["survivors"]) for entry in result["rounds"]]


def burned(result: dict[str, Any]) -> list[str | None]:
    return [entry["burned"] for entry in result["rounds"]]


def who_was_tested(tmp_path: Path) -> tuple[str, ...]:
    path = checkpoint_path(tmp_path / "server" / "state", RUN)
    return read_checkpoint(path, study_hash=STUDY.hash)[0].tested


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_hospital_that_vanishes_at_any_exchange_is_back_at_the_next_round(
    tmp_path, hospitals, exchange: str, when: str
) -> None:
    result, sites = run(tmp_path, hospitals, fault(exchange, when))
    in_the_sum = exchange in ("confirm", "unmask")
    assert burned(result) == [None] * 4
    assert survivors(result) == [
        EVERYBODY,
        EVERYBODY if in_the_sum else (ONE, THREE),
        EVERYBODY,
        EVERYBODY,
    ]
    assert who_was_tested(tmp_path) == EVERYBODY
    assert result["test"]["num_patients"] > 0
    assert not sites.restarted


@pytest.mark.thorough
@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.thorough), "after"])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_hospital_that_was_killed_at_any_exchange_is_back_with_a_later_batch(
    tmp_path, hospitals, exchange: str, when: str
) -> None:
    """That it has forgotten all is found at the next setup, and it is in the one after that."""
    result, sites = run(tmp_path, hospitals, fault(exchange, when, number=1, restart=True))
    in_the_sum = exchange in ("confirm", "unmask")
    assert sites.restarted == [TWO]
    assert burned(result) == [None] * 4
    assert survivors(result) == [
        EVERYBODY if in_the_sum else (ONE, THREE),
        (ONE, THREE),
        EVERYBODY,
        EVERYBODY,
    ]
    assert who_was_tested(tmp_path) == EVERYBODY
    asked = {entry["name"]: entry["rounds_asked"] for entry in result["sites"]}
    assert asked[ONE] == 4
    assert asked[TWO] == (2 if exchange in ("advertise", "share", "escrow") else 3)


@pytest.mark.thorough
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "exchange",
    ["evaluate"] + [pytest.param(kind, marks=pytest.mark.thorough) for kind in EXCHANGES if kind != "train"],
)
def test_a_hospital_that_vanishes_in_the_final_test_leaves_it_to_the_others(
    tmp_path, hospitals, exchange: str, when: str
) -> None:
    result, _ = run(tmp_path, hospitals, fault(exchange, when, number=5))
    assert survivors(result) == [EVERYBODY] * 4
    assert result["test_burned"] is None
    assert who_was_tested(tmp_path) == (EVERYBODY if exchange in ("confirm", "unmask") else (ONE, THREE))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("exchange", "told"),
    [
        ("train", "1 of 3 sites sent a vector; the study wants 2"),
        ("confirm", "1 of 3 survivors confirmed; the threshold is 2"),
        ("unmask", "1 sites gave shares; the threshold is 2"),
    ],
)
def test_two_of_three_that_vanish_in_a_round_burn_it_and_the_next_has_all(
    tmp_path, hospitals, exchange: str, told: str
) -> None:
    faults = fault(exchange), fault(exchange, "after", site=THREE)
    result, _ = run(tmp_path, hospitals, *faults)
    assert burned(result) == [None, told, None, None]
    assert survivors(result)[2:] == [EVERYBODY] * 2


@pytest.mark.thorough
def test_hospitals_that_vanish_at_different_exchanges_burn_the_round_once_too_few_are_left(
    tmp_path, hospitals
) -> None:
    result, _ = run(tmp_path, hospitals, fault("train"), fault("confirm", site=THREE))
    assert burned(result) == [None, "1 of 2 survivors confirmed; the threshold is 2", None, None]


@pytest.mark.thorough
def test_a_hospital_stays_away_for_as_many_rounds_as_the_fault_says(tmp_path, hospitals) -> None:
    result, sites = run(tmp_path, hospitals, fault("train", rounds=3, number=1))
    assert survivors(result) == [(ONE, THREE)] * 3 + [EVERYBODY]
    rounds = [request.round for site, request in sites.got if site == TWO and isinstance(request, Train)]
    assert rounds == [4]


@pytest.mark.thorough
def test_a_final_test_that_loses_too_many_has_no_figures_and_the_run_ends(tmp_path, hospitals) -> None:
    faults = fault("evaluate", number=5), fault("evaluate", "after", number=5, site=THREE)
    result, _ = run(tmp_path, hospitals, *faults)
    assert result["test"] == {}
    assert result["test_burned"] == "1 of 3 sites sent a vector; the study wants 2"
    assert burned(result) == [None] * 4


@pytest.mark.slow
def test_a_setup_that_loses_too_many_stops_the_run_before_anybody_trains(tmp_path, hospitals) -> None:
    with pytest.raises(TooFewSitesError, match="the secrets of round 1 could not be prepared"):
        run(tmp_path, hospitals, fault("share", number=1), fault("share", number=1, site=THREE))


# The exchange alone.


class Deaf:
    """An exchange within: everybody answers; what is heard and who is restarted is noted."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.restarted: list[str] = []

    def known_sites(self) -> tuple[str, ...]:
        return EVERYBODY

    def sites(self) -> tuple[str, ...]:
        return (ONE, TWO)

    def restart(self, site: str) -> None:
        self.restarted.append(site)

    def exchange(
        self,
        requests: Mapping[str, bytes],
        *,
        timeout_seconds: float,
        enough: int | None = None,
        grace_seconds: float = 0.0,
    ) -> Iterator[SiteReply]:
        for site, message in requests.items():
            self.heard.append((site, decode_request(message)[0].kind))
            yield SiteReply(site=site, message=message)


def ask(exchange: FaultyExchange, kind: type[Request], number: int | None = None) -> list[str]:
    """Who answers when both are asked."""
    values: dict[str, Any] = {"run_id": RUN, "study_hash": "0" * 64}
    values |= {} if number is None else {"round": number}
    values |= {"round_set": (0, 1)} if kind in (Train, Evaluate) else {}
    message = encode(kind.model_validate(values))
    return [reply.site for reply in exchange.exchange({ONE: message, TWO: message}, timeout_seconds=1.0)]


def test_a_request_that_is_lost_is_not_heard_and_a_reply_that_is_lost_was_worked_for() -> None:
    for when, heard in (("before", [ONE]), ("after", [ONE, TWO])):
        inner = Deaf()
        assert ask(FaultyExchange(inner, [fault("train", when, number=1)]), Train, 1) == [ONE]
        assert [site for site, _ in inner.heard] == heard


def test_the_exchanges_of_a_setup_belong_to_the_round_that_they_prepare() -> None:
    exchange = FaultyExchange(Deaf(), [fault("advertise", number=2)])
    assert ask(exchange, Advertise) == [ONE, TWO]
    assert ask(exchange, Train, 1) == [ONE, TWO]
    assert ask(exchange, Advertise) == [ONE]
    assert ask(exchange, Advertise) == [ONE], "a setup that is made again is the same round's"
    assert ask(exchange, Train, 2) == [ONE]
    assert ask(exchange, Unmask, 2) == [ONE]
    assert ask(exchange, Advertise) == [ONE, TWO]


def test_a_fault_strikes_once_at_the_first_such_exchange_from_its_round_on() -> None:
    exchange = FaultyExchange(Deaf(), [fault("advertise", number=2)])
    for number in (1, 2, 3):
        assert ask(exchange, Train, number) == [ONE, TWO]
    assert ask(exchange, Advertise) == [ONE], "the first setup after round 1 is round 4's"
    assert ask(exchange, Train, 5) == [ONE, TWO]
    assert ask(exchange, Advertise) == [ONE, TWO]


def test_a_second_fault_of_a_hospital_waits_until_it_is_back() -> None:
    exchange = FaultyExchange(Deaf(), [fault("train", number=1), fault("confirm", number=1)])
    assert ask(exchange, Train, 1) == [ONE]
    assert ask(exchange, Confirm, 1) == [ONE]
    assert ask(exchange, Train, 2) == [ONE, TWO]
    assert ask(exchange, Confirm, 2) == [ONE]
    assert ask(exchange, Train, 3) == [ONE, TWO]


def test_a_restart_happens_once_and_before_the_first_request_that_is_heard_again() -> None:
    inner = Deaf()
    exchange = FaultyExchange(inner, [fault("train", number=1, restart=True)])
    ask(exchange, Train, 1)
    ask(exchange, Confirm, 1)
    assert not inner.restarted
    ask(exchange, Advertise)
    ask(exchange, Train, 2)
    assert inner.restarted == [TWO]


def test_without_a_site_to_ask_nothing_is_sent_and_nobody_is_waited_for() -> None:
    inner = Deaf()
    exchange = FaultyExchange(inner, [fault("train", number=1), fault("train", number=1, site=ONE)])
    assert ask(exchange, Train, 1) == []
    assert inner.heard == []
    assert exchange.sites() == (ONE, TWO)
    assert exchange.known_sites() == EVERYBODY
    assert ask(exchange, Close) == [ONE, TWO]


# Reading them, and the engines.


def scenario_text(faults: str) -> str:
    lines = study_text(CHANGES).splitlines()
    study = [line.replace("[", "[study.", 1) if line.startswith("[") else line for line in lines]
    head = ['title = "A tiny scenario"', "seed = 3", "[hospitals]", 'kind = "phantom"', "num_hospitals = 3"]
    return "\n".join([*head, "[study]", *study, faults]) + "\n"


def fault_text(**changes: object) -> str:
    values = {"site": TWO, "round": 2, "exchange": "train", "when": "before", **changes}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
    return "\n".join(["[[faults]]", *lines])


def parsed(*faults: str) -> Scenario:
    return parse_toml(scenario_text("\n".join(faults)), Scenario, origin="scenario.toml")


def test_faults_are_read_from_a_scenario() -> None:
    assert parsed().faults == ()
    found = parsed(
        fault_text(), fault_text(exchange="evaluate", round=5, when="after", rounds=2, restart=True)
    )
    assert found.faults == (
        fault("train"),
        fault("evaluate", "after", number=5, rounds=2, restart=True),
    )
    assert parsed(fault_text(exchange="unmask", round=5)).faults[0].round == 5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"exchange": "open"}, "faults.0.exchange = 'open'"),
        ({"when": "during"}, "faults.0.when = 'during'"),
        ({"round": 0}, "faults.0.round = 0"),
        ({"rounds": 0}, "faults.0.rounds = 0"),
        ({"restart": 1}, "faults.0.restart = 1"),
        ({"site": None}, "faults.0.site is missing"),
        ({"hospital": "x"}, "faults.0.hospital is not a known key"),
        ({"round": 5}, "no train in round 5 of 4 and the final test: its round must lie in 1..4"),
        ({"round": 6, "exchange": "share"}, "its round must lie in 1..5"),
        ({"round": 4, "exchange": "evaluate"}, "its round must lie in 5..5"),
    ],
)
def test_a_fault_that_cannot_be_is_told_with_its_key(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed(fault_text(**changes))
    assert told in str(caught.value)


def test_a_hospital_that_does_not_exist_is_told_with_those_that_do() -> None:
    check_names([fault("train")], EVERYBODY)
    with pytest.raises(
        ConfigurationError, match="no hospital is called hospital-9; there are hospital-1, hos"
    ):
        check_names([fault("train"), fault("train", site="hospital-9")], EVERYBODY)


def quiet() -> Display:
    return Display(
        prepared=lambda done, total: None,
        rounds=lambda done: None,
        baselines=lambda done, total: None,
        say=lambda text: None,
    )


@pytest.mark.parametrize("prepared", [True, False])
def test_the_run_tells_it_before_it_prepares_or_takes_the_folder(tmp_path, hospitals, prepared: bool) -> None:
    options = Options(
        engine="local", compare=False, out=tmp_path / "out", hospitals=hospitals if prepared else None
    )
    with pytest.raises(ConfigurationError, match="no hospital is called hospital-9"):
        run_scenario(parsed(fault_text(site="hospital-9")), options, quiet())
    assert not (tmp_path / "out").exists()


def test_the_deployed_engine_refuses_faults_before_anything_starts(tmp_path, hospitals) -> None:
    options = Options(engine="deployed", compare=False, out=tmp_path / "out", hospitals=hospitals)
    with pytest.raises(ConfigurationError, match="are for the local engine"):
        run_scenario(parsed(fault_text()), options, quiet())
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_a_scenario_with_faults_runs_in_worker_processes_to_its_end(tmp_path, hospitals) -> None:
    path = tmp_path / "faults.toml"
    killed = fault_text(exchange="train", when="after", round=1, restart=True)
    silent = fault_text(exchange="confirm", round=3, site=THREE)
    path.write_text(scenario_text(f"{killed}\n{silent}"), encoding="utf-8")
    options = Options(engine="local", compare=False, out=tmp_path / "out", hospitals=hospitals, num_workers=2)
    run_scenario(read_scenario(str(path)), options, quiet())
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert burned(result) == [None] * 4
    assert survivors(result) == [(ONE, THREE), (ONE, THREE), EVERYBODY, EVERYBODY]
    assert result["test_burned"] is None
    assert [site["name"] for site in result["sites"]] == list(EVERYBODY)


def test_the_files_page_names_every_key_of_a_fault_and_which_must_be_given() -> None:
    text = section(page("files.md"), "## Faults of a scenario")
    assert first_cells(text) == set(Fault.model_fields)
    for cells in rows(text):
        required = Fault.model_fields[cells[0].strip("` ")].is_required()
        assert (cells[2] == "–") == required
    example = text.split("```toml\n")[1].split("```")[0]
    assert parsed(example.replace("round = 5", "round = 4")).faults[0].exchange == "confirm"
