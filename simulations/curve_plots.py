"""Plots of an assessment: ROC curve, precision-recall curve, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from server.assessment import Assessment, PartEntry
from simulations.plots import FEDERATED, LINES, MUTED, SERIES, LineStyle, drawn_as_svg, new_figure

Assessments = Sequence[tuple[str, Assessment]]
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "h")
"""Of operating points, in their order."""
FEW = 10
"""Patients: the observed share of fewer is drawn hollow, and no line goes to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A part to draw, and whether its operating points are on it."""

    part: PartEntry
    label: str
    colour: str
    style: LineStyle
    marked: bool


def roc_plot(assessments: Assessments) -> Markup | None:
    """Sensitivity over 1 − specificity, with the operating points; None where there are no curves."""
    if not assessments:
        return None
    lines = _lines(assessments)
    figure, axes = new_figure(4.7, _height(lines))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
    for line in lines:
        wrong = [None if value is None else 1 - value for value in line.part.curve.specificity]
        axes.plot(
            *_both(wrong, line.part.curve.sensitivity),
            color=line.colour,
            linestyle=line.style,
            label=line.label,
            linewidth=1.6,
        )
        _mark(axes, line, "specificity", "sensitivity")
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _legend(figure, axes, lines)
    return drawn_as_svg(figure, "ROC curve: sensitivity over 1 − specificity at all thresholds")


def precision_plot(assessments: Assessments) -> Markup | None:
    """Positive predictive value over sensitivity, with what chance gives; None where there are no curves.

    In steps, whose area is average precision: between two thresholds the value of the lower one holds.
    """
    if not assessments:
        return None
    lines = _lines(assessments)
    figure, axes = new_figure(4.7, _height(lines))
    for line in lines:
        num = line.part.num_negative + line.part.num_positive
        if num > 0 and line.marked:
            axes.axhline(line.part.num_positive / num, color=line.colour, linewidth=0.8, linestyle=":")
        axes.plot(
            *_both(line.part.curve.sensitivity, line.part.curve.ppv),
            color=line.colour,
            linestyle=line.style,
            label=line.label,
            linewidth=1.4,
            drawstyle="steps-post",
        )
        _mark(axes, line, "sensitivity", "ppv")
    axes.set(
        xlabel="sensitivity (recall)",
        ylabel="positive predictive value (precision)",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    _legend(figure, axes, lines)
    return drawn_as_svg(
        figure, "Precision-recall curve; dotted: the share of positive patients, which chance gives"
    )


def calibration_plot(assessments: Assessments, *, unit: str) -> Markup | None:
    """Observed over predicted shares, with intervals, and below it how many patients stand behind each.

    Shares of fewer than `FEW` are hollow. *unit* is whom the counts are of.
    """
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
    for line in lines:
        groups = line.part.calibration
        _observed(upper, line)
        counts = [group.num_patients for group in groups]
        if len(lines) == 1:
            lower.bar(
                [group.low for group in groups],
                counts,
                [group.high - group.low for group in groups],
                align="edge",
                color=line.colour,
                alpha=0.7,
                edgecolor="white",
            )
        else:
            lower.step(
                [*(group.low for group in groups), 1.0],
                [*counts, counts[-1]],
                where="post",
                color=line.colour,
                linestyle=line.style,
            )
    upper.set(ylabel="observed share", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    lower.set(xlabel="predicted probability", ylabel=f"{unit}s")
    upper.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn_as_svg(
        figure, "Calibration: observed share of positive patients over predicted probability, with counts"
    )


def _observed(axes: Axes, line: _Line) -> None:
    """Draw the observed share of each group over the predicted one, with its interval."""
    known = [
        (group.predicted, group.observed, group)
        for group in line.part.calibration
        if group.predicted is not None and group.observed is not None
    ]
    many = [(x, y) for x, y, group in known if group.num_patients >= FEW]
    axes.plot(
        [x for x, _ in many],
        [y for _, y in many],
        color=line.colour,
        linestyle=line.style,
        marker="o",
        label=line.label,
        markersize=4,
        linewidth=1.2,
    )
    for x, y, group in known:
        if group.num_patients < FEW:
            axes.plot([x], [y], "o", color=line.colour, markerfacecolor="white", markersize=4)
        if group.interval is not None:
            axes.plot(
                [x, x], [group.interval.low, group.interval.high], color=line.colour, linewidth=1, alpha=0.6
            )


def overlap_plot(assessments: Assessments, *, unit: str) -> Markup | None:
    """How many patients have which Dice, of the first source; None where nothing is marked."""
    if not assessments or not assessments[0][1].overlaps:
        return None
    figure, axes = new_figure(7.2, 2.8)
    overlaps = assessments[0][1].overlaps[: len(SERIES)]
    missed = 0.05  # the width of the bar of those of whom nothing was found
    for number, (colour, own) in enumerate(zip(SERIES, overlaps, strict=False)):
        widths = [(high - low) / len(overlaps) for low, high in zip(own.edges, own.edges[1:], strict=False)]
        places = [low + number * width for low, width in zip(own.edges, widths, strict=False)]
        bars = [0.92 * width for width in widths]
        axes.bar(places, own.num_patients, bars, align="edge", color=colour, label=own.name)
        across = missed / len(overlaps)
        axes.bar(
            [-missed + number * across],
            [own.num_missed],
            0.92 * across,
            align="edge",
            color=colour,
            alpha=0.45,
        )
    axes.set_xticks([-missed / 2, 0, 0.25, 0.5, 0.75, 1], ["\nmissed", "0", "0.25", "0.5", "0.75", "1"])
    axes.set(xlabel="Dice", ylabel=f"{unit}s", xlim=(-1.2 * missed, 1.02))
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn_as_svg(figure, "How many patients have which Dice; pale, left of 0: nothing was found")


def _lines(assessments: Assessments) -> list[_Line]:
    """Of one question each source, of several parts the first source's."""
    first = assessments[0][1].parts
    if len(first) == 1:
        return [
            _Line(
                part=one.parts[0],
                label=source,
                colour=MUTED if place else FEDERATED,
                style="--" if place else "-",
                marked=not place,
            )
            for place, (source, one) in enumerate(assessments)
        ]
    return [
        _Line(part=part, label=part.name, colour=colour, style=LINES[place % len(LINES)], marked=True)
        for place, (colour, part) in enumerate(zip(SERIES, first, strict=False))
    ]


def _mark(axes: Axes, line: _Line, x: str, y: str) -> None:
    """Put the operating points of a line on it."""
    for mark, point in zip(MARKS, line.part.operating_points if line.marked else (), strict=False):
        across, up = point.figures.get(x), point.figures.get(y)
        if across is None or up is None:
            continue
        across = 1 - across if x == "specificity" else across
        axes.plot([across], [up], mark, color=line.colour, markersize=7, markeredgecolor="white")


def _legend(figure: Figure, axes: Axes, lines: Sequence[_Line]) -> None:
    """Above the plot, where no curve runs: the lines, and what marks are, in a colour that is no line's."""
    for mark, point in zip(MARKS, lines[0].part.operating_points, strict=False):
        label = "threshold 0.5" if point.name == "0.5" else point.name
        axes.plot([], [], mark, color=MUTED, markersize=6, markeredgecolor="white", label=label)
    figure.legend(frameon=False, fontsize=8, ncols=2, loc="outside upper center")


def _height(lines: Sequence[_Line]) -> float:
    """Of a square plot with its legend, in inches."""
    return 4.2 + 0.17 * -(-(len(lines) + len(lines[0].part.operating_points)) // 2)


def _both(x: Sequence[float | None], y: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """The points of which both coordinates are known."""
    known = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    return [a for a, _ in known], [b for _, b in known]
