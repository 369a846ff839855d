"""``report.html``: one self-contained page about a run, with plots as inline SVG."""

from pathlib import Path

from server.assessment import Assessment
from server.checkpoint import write_atomically
from server.result import Result
from shared_models.study import Study
from shared_models.tasks.histograms import mean_of_known
from shared_models.tasks.registry import task_of
from shared_models.tasks.task import compared_of, headline_of
from simulations.curve_plots import calibration_plot, overlap_plot, precision_plot, roc_plot
from simulations.metric_words import METHODS, words_of
from simulations.pages import render
from simulations.run_plots import (
    alone_mean,
    epsilon_by_round,
    headline_by_site,
    headline_over_rounds,
    seconds_by_round,
)


def write_report(path: Path, result: Result, study: Study) -> None:
    """Write the page, whole or not at all. It needs no network and no other file."""
    task = task_of(study)
    headline = headline_of(task)
    assessments = _assessments(result)
    scored = [(source, one) for source, one in assessments if one.parts]
    page = render(
        "report.html.jinja",
        result=result,
        study=study,
        plots={
            "headline": headline_over_rounds(result, *headline),
            "sites": headline_by_site(result, *headline),
            "epsilon": epsilon_by_round(result),
            "seconds": seconds_by_round(result),
            "roc": roc_plot(scored),
            "precision": precision_plot(scored),
            "calibration": calibration_plot(scored, unit=result.privacy.unit),
            "overlap": overlap_plot(assessments, unit=result.privacy.unit),
        },
        left_out=sorted({reason for site in result.sites for reason in site.left_out or {}}),
        alone_mean=alone_mean(result, headline[0]),
        metric=headline[0],
        headline=headline[1],
        compared=compared_of(task),
        headings=task.headings,
        parts=task.parts,
        known=_known(result),
        assessments=assessments,
        by_chance=_by_chance(assessments),
        words=words_of(result.privacy.unit, marks=headline[0] == "dice"),
        methods=METHODS,
    )
    write_atomically(path, page.encode())


def _noised(result: Result) -> str:
    return " (noised)" if result.privacy.evaluation_noised else ""


def _known(result: Result) -> list[tuple[str, dict[str, float | None], dict[str, float | None] | None]]:
    """Whose figures of the federated model there are, these figures, and their noise."""
    known = [
        (f"as the server knows it{_noised(result)}", result.test, result.test_noise),
        ("exact (simulation only)", result.exact_test or {}, None),
    ]
    return [one for one in known if one[1]]


def _assessments(result: Result) -> list[tuple[str, Assessment]]:
    """Whose assessments there are, exact ones first."""
    both = [
        ("exact (simulation only)", result.exact_assessment),
        (f"as the server knows it{_noised(result)}", result.test_assessment),
    ]
    return [(source, one) for source, one in both if one is not None and (one.parts or one.overlaps)]


def _by_chance(assessments: list[tuple[str, Assessment]]) -> float | None:
    """The calibration error that a perfectly calibrated model would show, mean of the first source's parts."""
    parts = assessments[0][1].parts if assessments else ()
    return mean_of_known([part.calibration_error_by_chance for part in parts])
