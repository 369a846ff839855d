"""Plots of an assessment: ROC curve, precision-recall curve, calibration."""

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes

from server.assessment import Assessment, PartEntry
from simulations.plots import FEDERATED, MUTED, SERIES, drawn_as_svg, new_figure

Assessments = Sequence[tuple[str, Assessment]]
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "h")
"""Of operating points, in their order."""


def roc_plot(assessments: Assessments) -> Markup | None:
    """Sensitivity over 1 − specificity, with the operating points; None where there are no curves."""
    if not assessments:
        return None
    figure, axes = new_figure(4.7, 4.4)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
    for place, (colour, label, part, style) in enumerate(_lines(assessments)):
        wrong = [None if value is None else 1 - value for value in part.curve.specificity]
        axes.plot(*_both(wrong, part.curve.sensitivity), style, color=colour, label=label, linewidth=1.6)
        if style == "-":
            _mark(axes, part, colour, "specificity", "sensitivity", named=place == 0)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return drawn_as_svg(figure, "ROC curve: sensitivity over 1 − specificity at all thresholds")


def precision_plot(assessments: Assessments) -> Markup | None:
    """Positive predictive value over sensitivity, with what chance gives; None where there are no curves."""
    if not assessments:
        return None
    figure, axes = new_figure(4.7, 4.4)
    for place, (colour, label, part, style) in enumerate(_lines(assessments)):
        num = part.num_negative + part.num_positive
        if num > 0 and style == "-":
            axes.axhline(part.num_positive / num, color=colour, linewidth=0.8, linestyle=":")
        axes.plot(
            *_both(part.curve.sensitivity, part.curve.ppv), style, color=colour, label=label, linewidth=1.6
        )
        if style == "-":
            _mark(axes, part, colour, "sensitivity", "ppv", named=place == 0)
    axes.set(
        xlabel="sensitivity (recall)",
        ylabel="positive predictive value (precision)",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    return drawn_as_svg(
        figure, "Precision-recall curve; dotted: the share of positive patients, which chance gives"
    )


def calibration_plot(assessments: Assessments) -> Markup | None:
    """Observed over predicted shares, with intervals, and below it how many patients stand behind each."""
    if not assessments:
        return None
    figure, _ = new_figure(7.2, 4.6)
    figure.clear()
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
    lines = _lines(assessments[:1])
    for number, (colour, label, part, _) in enumerate(lines):
        groups = [group for group in part.calibration if None not in (group.predicted, group.observed)]
        shift = (number - (len(lines) - 1) / 2) * 0.004
        x = [(group.predicted or 0.0) + shift for group in groups]
        y = [group.observed or 0.0 for group in groups]
        upper.plot(x, y, "o-", color=colour, label=label, markersize=4, linewidth=1.2)
        for place, group in zip(x, groups, strict=True):
            if group.interval is not None:
                upper.plot(
                    [place, place],
                    [group.interval.low, group.interval.high],
                    color=colour,
                    linewidth=1,
                    alpha=0.6,
                )
        counts = [group.num_patients for group in part.calibration]
        if len(lines) == 1:
            lower.bar(
                [group.low for group in part.calibration],
                counts,
                [group.high - group.low for group in part.calibration],
                align="edge",
                color=colour,
                alpha=0.7,
                edgecolor="white",
            )
        else:
            lower.step(
                [*(group.low for group in part.calibration), 1.0],
                [*counts, counts[-1]],
                where="post",
                color=colour,
            )
    upper.set(ylabel="observed share", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    lower.set(xlabel="predicted probability", ylabel="patients")
    upper.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn_as_svg(
        figure, "Calibration: observed share of positive patients over predicted probability, with counts"
    )


def overlap_plot(assessments: Assessments) -> Markup | None:
    """How many patients have which Dice, of the first source; None where nothing is marked."""
    if not assessments or not assessments[0][1].overlaps:
        return None
    figure, axes = new_figure(7.2, 2.8)
    overlaps = assessments[0][1].overlaps[: len(SERIES)]
    for number, (colour, own) in enumerate(zip(SERIES, overlaps, strict=False)):
        width = 1.0 / len(own.num_patients)
        across = width * 0.92 / len(overlaps)
        places = [place * width + number * across for place in range(len(own.num_patients))]
        axes.bar(places, own.num_patients, across, align="edge", color=colour, label=own.name)
        axes.bar([-width + number * across], [own.num_missed], across, align="edge", color=colour, alpha=0.45)
    axes.set_xticks([-width / 2, 0, 0.25, 0.5, 0.75, 1], ["\nmissed", "0", "0.25", "0.5", "0.75", "1"])
    axes.set(xlabel="Dice", ylabel="patients", xlim=(-1.2 * width, 1.02))
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn_as_svg(figure, "How many patients have which Dice; pale, left of 0: nothing was found")


def _lines(assessments: Assessments) -> list[tuple[str, str, PartEntry, str]]:
    """(colour, label, part, style): of one question each source, of several parts the first source's."""
    first = assessments[0][1].parts
    if len(first) == 1:
        return [
            (FEDERATED if place == 0 else MUTED, source, one.parts[0], "-" if place == 0 else "--")
            for place, (source, one) in enumerate(assessments)
        ]
    return [(colour, part.name, part, "-") for colour, part in zip(SERIES, first, strict=False)]


def _mark(axes: Axes, part: PartEntry, colour: str, x: str, y: str, *, named: bool) -> None:
    """Put the operating points of *part* on its curve; *named* ones stand in the legend."""
    for mark, point in zip(MARKS, part.operating_points, strict=False):
        across, up = point.figures.get(x), point.figures.get(y)
        if across is None or up is None:
            continue
        across = 1 - across if x == "specificity" else across
        label = point.name if named else None
        axes.plot([across], [up], mark, color=colour, markersize=7, markeredgecolor="white", label=label)


def _both(x: Sequence[float | None], y: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """The points of which both coordinates are known."""
    known = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    return [a for a, _ in known], [b for _, b in known]
