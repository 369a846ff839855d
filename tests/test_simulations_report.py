"""The report of runs that went wrong in part: it is written, and says what happened."""

import re
from pathlib import Path

import numpy as np
import pytest
from fake_sites import RUN, FakeExchange
from studies import make_study
from test_server_aggregation import DISTRIBUTED

from server.assessment import Assessment, assess
from server.metric_intervals import Noise
from server.result import Result
from server.run import checkpoint_path, run_study
from server.run_state import RunContext
from server.thresholds import choose
from shared_models.messages import Evaluate, Request, Train
from shared_models.study import Study
from shared_models.tasks.multi_class import MultiClassClassification
from simulations.curve_plots import calibration_plot, precision_plot, roc_plot
from simulations.metric_words import words_of
from simulations.plots import SERIES
from simulations.report import write_report
from simulations.run_plots import headline_by_site

STUDY = make_study()


def report_of(tmp_path: Path, exchange: FakeExchange) -> tuple[Result, str]:
    context = RunContext(
        study=exchange.study,
        run_id=RUN,
        exchange=exchange,
        federation=exchange.federation,
        checkpoint=checkpoint_path(tmp_path, RUN),
        patience_seconds=0.0,
        start_seconds=0.0,
    )
    result = run_study(context, engine="deployed")
    write_report(tmp_path / "report.html", result, exchange.study)
    return result, (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_report_without_test_figures_says_why_there_are_none(tmp_path) -> None:
    def absent(site: str, request: Request) -> bool:
        return site == "south" and isinstance(request, Evaluate)

    result, page = report_of(tmp_path, FakeExchange(STUDY, {"north": 0.1, "south": 0.3}, absent=absent))
    assert result.test == {}
    assert "No test figures" in page
    assert str(result.test_burned) in page


@pytest.mark.slow
def test_a_report_lists_burned_rounds_with_their_reasons(tmp_path) -> None:
    def absent(site: str, request: Request) -> bool:
        return site == "south" and isinstance(request, Train) and request.round == 2

    result, page = report_of(tmp_path, FakeExchange(STUDY, {"north": 0.1, "south": 0.3}, absent=absent))
    assert "Burned rounds" in page
    assert str(result.rounds[1].burned) in page
    assert "In this engine all sites ran on one machine" not in page


@pytest.mark.slow
def test_a_report_of_a_run_without_trouble_has_neither(tmp_path) -> None:
    _, page = report_of(tmp_path, FakeExchange(STUDY, {"north": 0.1, "south": 0.3}))
    assert "Burned rounds" not in page
    assert "No test figures" not in page
    assert "opens sums of at least 2 sites" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "words"),
    [
        (make_study(private=True), "each site adds all of the noise by itself"),
        (
            make_study(DISTRIBUTED, private=True),
            "the server together with up to 1 of the sites, and the public, and rests on secure aggregation: the sites "
            "share the noise, of which at least 2 honest sites",
        ),
    ],
    ids=["local", "distributed"],
)
def test_a_report_says_whom_the_promise_is_against_and_both_figures_of_epsilon(
    tmp_path: Path, study: Study, words: str
) -> None:
    sites = dict.fromkeys(("north", "south", "west"), 0.01)
    result, page = report_of(tmp_path, FakeExchange(study, sites))
    privacy = result.privacy
    assert words in page
    assert privacy.epsilon is not None
    assert privacy.epsilon_rdp is not None
    assert privacy.epsilon < privacy.epsilon_rdp
    assert f"gives {privacy.epsilon_rdp:.3f} for the same run" in page
    assert f"ε = {privacy.epsilon:.3f} at δ = {privacy.delta}" in page
    assert "No differential privacy" not in page


@pytest.mark.slow
def test_a_report_without_privacy_claims_no_epsilon(tmp_path: Path) -> None:
    result, page = report_of(tmp_path, FakeExchange(STUDY, {"north": 0.1, "south": 0.3}))
    assert (result.privacy.epsilon, result.privacy.epsilon_rdp) == (None, None)
    assert "No differential privacy" in page
    assert "(RDP)" not in page


def class_assessment() -> Assessment:
    """Of three classes, one of them rare, in fine bins."""
    task = MultiClassClassification(num_bins=20, names=("nevus", "melanoma", "rare"), weights=(1.0,) * 3)
    random = np.random.default_rng(2)
    labels = random.choice(3, 300, p=[0.7, 0.27, 0.03])
    logits = random.normal(size=(300, 3)) + 1.5 * np.eye(3)[labels]
    fine = task.finely_binned()
    statistics = fine.statistics(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels)
    points = {name: choose([], None, validated_round=None) for name in task.names}
    return assess(fine, statistics, noise=Noise(), points=points)


def test_plots_of_classes_name_each_class_in_its_colour_and_the_unit() -> None:
    told = [("exact", class_assessment())]
    for plot in (roc_plot(told), precision_plot(told)):
        assert plot is not None
        for name in ("nevus", "melanoma", "rare", "threshold 0.5"):
            assert f"<!-- {name} -->" in plot
        colours = set(re.findall(r"#[0-9a-f]{6}", plot))
        assert set(SERIES[:3]) <= colours
    calibration = calibration_plot(told, unit="lesion")
    assert calibration is not None
    assert "<!-- lesions -->" in calibration
    assert "patients" not in re.sub(r"aria-label=\"[^\"]*\"", "", calibration)


@pytest.mark.slow
def test_a_site_is_named_with_what_its_bars_rest_on(tmp_path: Path) -> None:
    result, _ = report_of(tmp_path, FakeExchange(STUDY, {"north": 0.1, "south": 0.3}))
    test = {"num_patients": 62.0, "num_classes": 5.0, "auroc": 0.8}
    sites = tuple(site.model_copy(update={"test": test}) for site in result.sites)
    plot = headline_by_site(result.model_copy(update={"sites": sites}), "auroc", "mean AUROC")
    assert plot is not None
    for words in ("north", "n = 62", "5 classes"):
        assert f"<!-- {words} -->" in plot


def test_what_figures_say_is_of_the_unit_and_of_marks_something_else() -> None:
    of_scores, of_marks = words_of("lesion", marks=False), words_of("lesion", marks=True)
    assert all("{" not in says and "patient" not in says for _, says in of_scores.values())
    assert of_scores["specificity"][0] == "specificity"
    assert of_marks["specificity"][0] == "rightly unmarked"
    assert of_marks.keys() == of_scores.keys()
