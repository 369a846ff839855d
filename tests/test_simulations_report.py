"""The report of runs that went wrong in part: it is written, and says what happened."""

from pathlib import Path

from fake_sites import RUN, FakeExchange
from studies import make_study

from server.result import Result
from server.run import checkpoint_path, run_study
from server.run_state import RunContext
from shared_models.messages import Evaluate, Request, Train
from simulations.report import write_report

STUDY = make_study()


def report_of(tmp_path: Path, exchange: FakeExchange) -> tuple[Result, str]:
    context = RunContext(
        study=STUDY,
        run_id=RUN,
        exchange=exchange,
        federation=exchange.federation,
        checkpoint=checkpoint_path(tmp_path, RUN),
        patience_seconds=0.0,
        start_seconds=0.0,
    )
    result = run_study(context, engine="deployed")
    write_report(tmp_path / "report.html", result, STUDY)
    return result, (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_without_test_figures_says_why_there_are_none(tmp_path) -> None:
    def absent(site: str, request: Request) -> bool:
        return site == "south" and isinstance(request, Evaluate)

    result, page = report_of(tmp_path, FakeExchange(STUDY, {"north": 0.1, "south": 0.3}, absent=absent))
    assert result.test == {}
    assert "No test figures" in page
    assert str(result.test_burned) in page


def test_a_report_lists_burned_rounds_with_their_reasons(tmp_path) -> None:
    def absent(site: str, request: Request) -> bool:
        return site == "south" and isinstance(request, Train) and request.round == 2

    result, page = report_of(tmp_path, FakeExchange(STUDY, {"north": 0.1, "south": 0.3}, absent=absent))
    assert "Burned rounds" in page
    assert str(result.rounds[1].burned) in page
    assert "In this engine all sites ran on one machine" not in page


def test_a_report_of_a_run_without_trouble_has_neither(tmp_path) -> None:
    _, page = report_of(tmp_path, FakeExchange(STUDY, {"north": 0.1, "south": 0.3}))
    assert "Burned rounds" not in page
    assert "No test figures" not in page
    assert "opens sums of at least 2 sites" in page
