"""``collegium-simulate audit``: what it writes, and how it ends."""

import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from audits import DISTRIBUTED, LOCAL, TestKeys, failed
from fake_sites import RUN, FakeExchange
from studies import make_study
from test_audit_checks import plant_noise
from typer.testing import CliRunner

from server.run import checkpoint_path, run_study
from server.run_state import RunContext
from shared_models.configuration import ConfigurationError
from shared_models.study import Study
from simulations.audit import suite
from simulations.audit.findings import Audit, Check, Finding
from simulations.audit.inversion import Reconstruction, phantom
from simulations.audit.page import add_to_report, write_audit_page
from simulations.audit.suite import CHECKS, JOBS, rounds_of_noise, run_audit
from simulations.command import app
from simulations.report import write_report
from simulations.run_folder import MARKER, OutputFolderError
from simulations.scenario import Scenario
from simulations.work_folder import toml_value, write_study


def scenario_file(folder: Path, study: Study) -> Path:
    """A scenario of phantoms with this study."""
    write_study(folder / "study.toml", study)
    lines = (folder / "study.toml").read_text(encoding="utf-8").splitlines()
    inner = [line.replace("[", "[study.", 1) if line.startswith("[") else line for line in lines]
    head = [f"title = {toml_value(study.title)}", "seed = 3", "[hospitals]", 'kind = "phantom"', "[study]"]
    path = folder / "scenario.toml"
    path.write_text("\n".join([*head, *inner]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def noise_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One group of checks, in this process."""
    monkeypatch.setattr(suite, "JOBS", (rounds_of_noise,))


def audit_in(folder: Path, study: Study = LOCAL) -> tuple[int, dict[str, Any], str]:
    arguments = ["audit", str(scenario_file(folder, study)), "--out", str(folder / "out"), "--workers", "1"]
    done = CliRunner().invoke(app, arguments)
    figures = json.loads((folder / "out" / "audit.json").read_text(encoding="utf-8"))
    return done.exit_code, figures, (folder / "out" / "audit.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("noise_alone")
def test_it_ends_with_0_where_nothing_is_found_and_writes_what_was_measured(tmp_path) -> None:
    code, figures, page = audit_in(tmp_path)
    assert code == 0
    assert figures["ok"] is True
    assert figures["study_hash"] == LOCAL.hash
    assert [check["name"] for check in figures["checks"]] == ["calibration", "each-hospital", "reuse"]
    assert all(
        html.escape(finding["what"]) in html.escape(html.unescape(page))
        for check in figures["checks"]
        for finding in check["findings"]
    )
    assert "The promise does not hold" not in page


@pytest.mark.usefixtures("noise_alone")
@pytest.mark.parametrize("study", [LOCAL, DISTRIBUTED], ids=["local", "distributed"])
def test_it_ends_with_1_where_a_check_fails(tmp_path, monkeypatch: pytest.MonkeyPatch, study: Study) -> None:
    plant_noise(monkeypatch, 0.5)
    code, figures, page = audit_in(tmp_path, study)
    assert code == 1
    assert figures["ok"] is False
    assert [check["name"] for check in figures["checks"] if not check["ok"]] == [
        "calibration",
        "each-hospital",
    ]
    assert "The promise does not hold" in page


def test_a_study_without_privacy_promises_nothing_that_could_be_audited(tmp_path) -> None:
    path = scenario_file(tmp_path, make_study())
    done = CliRunner().invoke(app, ["audit", str(path), "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, ConfigurationError)
    assert "promises nothing" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_study_that_hospitals_refuse_is_not_audited(tmp_path) -> None:
    crowd = {"num_sites_max": 1000, "threshold": 999, "min_cohort": 999}
    aggregation = DISTRIBUTED.aggregation.model_copy(update=crowd)
    model = DISTRIBUTED.model.model_copy(update={"width": 64})
    study = DISTRIBUTED.model_copy(update={"aggregation": aggregation, "model": model})
    done = CliRunner().invoke(app, ["audit", str(scenario_file(tmp_path, study)), "--workers", "1"])
    assert isinstance(done.exception, ConfigurationError)
    assert "hospitals refuse this study" in str(done.exception)


def test_a_folder_of_something_else_is_left_alone(tmp_path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to-mother.txt").write_text("Dear mother", encoding="utf-8")
    path = scenario_file(tmp_path, LOCAL)
    done = CliRunner().invoke(app, ["audit", str(path), "--out", str(tmp_path / "letters")])
    assert isinstance(done.exception, OutputFolderError)
    assert [entry.name for entry in (tmp_path / "letters").iterdir()] == ["to-mother.txt"]


# The report of a run


def report_in(folder: Path, study: Study) -> Path:
    """A run's folder with its report."""
    exchange = FakeExchange(study, {"north": 0.1, "south": 0.3})
    context = RunContext(
        study=study,
        run_id=RUN,
        exchange=exchange,
        federation=exchange.federation,
        checkpoint=checkpoint_path(folder, RUN),
        patience_seconds=0.0,
        start_seconds=0.0,
    )
    result = run_study(context, engine="local")
    out = folder / "out"
    out.mkdir()
    (out / MARKER).touch()
    write_report(out / "report.html", result, study)
    (out / "result.json").write_text(result.to_json(), encoding="utf-8")
    return out / "report.html"


@pytest.mark.slow
@pytest.mark.usefixtures("noise_alone")
def test_a_run_of_the_same_study_gets_one_section_in_its_report(tmp_path) -> None:
    report = report_in(tmp_path, LOCAL)
    before = report.read_text(encoding="utf-8")
    for _ in range(2):
        assert audit_in(tmp_path)[0] == 0
        page = report.read_text(encoding="utf-8")
        assert page.count("Audit of the promise") == 1
    assert 'href="audit.html"' in page
    assert re.sub(r"<!-- audit -->.*<!-- end of audit -->", "<!-- audit -->", page, flags=re.DOTALL) == before


@pytest.mark.slow
@pytest.mark.usefixtures("noise_alone")
def test_the_report_of_another_study_stays_as_it_is(tmp_path) -> None:
    other = make_study(private=True)
    report = report_in(tmp_path, other)
    before = report.read_bytes()
    assert audit_in(tmp_path)[0] == 0
    assert report.read_bytes() == before


# The page


class Sources(HTMLParser):
    """What a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loads = {"src", "data"} | ({"href"} if tag in ("link", "image", "use") else set())
        self.found += [value or "" for name, value in attrs if name in loads]


def made_up(*, good: bool) -> Audit:
    finding = Finding(what="figure <&>", seen=float("nan") if not good else 1.0, least=0.0, most=2.0)
    check = Check(name="one-run", claim="A claim.", source="A source", findings=(finding,))
    return Audit(
        scenario="demo",
        study="A study",
        study_hash="0" * 64,
        mode="local",
        unit="patient",
        epsilon=3.0,
        delta=1e-5,
        versions={"python": "3.11"},
        checks=(check,),
    )


@pytest.mark.parametrize("good", [True, False])
def test_the_page_shows_pictures_side_by_side_and_loads_nothing(tmp_path, good: bool) -> None:
    picture = phantom(0).double().numpy()
    each = Reconstruction(
        attack="closed form",
        original=picture,
        unprotected=picture,
        protected=1.0 - picture,
        random=0.0 * picture,
    )
    write_audit_page(tmp_path / "audit.html", made_up(good=good), [each])
    page = (tmp_path / "audit.html").read_text(encoding="utf-8")
    sources = Sources()
    sources.feed(page)
    assert len(sources.found) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources.found)
    assert sources.found[0] == sources.found[1] != sources.found[2]
    assert "figure &lt;&amp;&gt;" in page
    assert ("FAILED" in page) is not good


def test_a_figure_that_is_not_a_number_is_never_all_right() -> None:
    assert not made_up(good=False).ok
    assert made_up(good=True).ok


def test_a_page_without_the_place_for_a_section_stays_as_it_is(tmp_path) -> None:
    path = tmp_path / "report.html"
    path.write_text("<main></main>", encoding="utf-8")
    add_to_report(path, made_up(good=True))
    assert path.read_text(encoding="utf-8") == "<main></main>"


# The whole of it


@pytest.mark.thorough
@pytest.mark.parametrize("study", [LOCAL, DISTRIBUTED], ids=["local", "distributed"])
def test_all_checks_of_a_small_study_pass_and_false_alarms_are_rarer_than_one_in_a_thousand(
    study: Study,
) -> None:
    scenario = Scenario.model_validate(
        {"title": "t", "seed": 1, "hospitals": {"kind": "phantom"}, "study": study}
    )
    told: list[tuple[int, int]] = []
    audit, pictures = run_audit(
        scenario, name="small", num_workers=1, tell=lambda *done: told.append(done), keys=TestKeys()
    )
    assert {check.name: failed(check.findings) for check in audit.checks} == {name: [] for name in CHECKS}
    assert audit.ok
    assert 0.0 < audit.false_alarm < 1e-3
    assert told[-1] == (len(JOBS), len(JOBS))
    assert len(pictures) == 8


@pytest.mark.thorough
def test_the_demo_passes_in_processes_of_its_own(tmp_path) -> None:
    command = [sys.executable, "-m", "simulations.command", "audit", "demo", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing was found against the promise" in done.stderr
