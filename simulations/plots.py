"""Figures for pages: drawn without a display, as inline SVG that needs no other file."""

import io
import re
from typing import TypeAlias

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LineStyle: TypeAlias = str | tuple[float, tuple[float, ...]]
FEDERATED, ALONE, POOLED, MUTED = "#0b6e69", "#c4741a", "#5b5ea6", "#6b7280"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Colours of classes and findings in one plot; as many as are drawn. Those that Okabe and Ito (2008) chose to be told
apart by colour-blind readers, and grey for their yellow, which is pale on white."""
LINES: tuple[LineStyle, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
"""Styles of their lines, in turn, for those who see no colours."""


def new_figure(width: float = 7.2, height: float = 3.0) -> tuple[Figure, Axes]:
    """An empty figure in the style of all of them."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def drawn_as_svg(figure: Figure, description: str) -> Markup:
    """The figure as an SVG element with text for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
    label = Markup.escape(description)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))  # noqa: S704 - our own figure
