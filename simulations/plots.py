"""Figures for pages: drawn without a display, as inline SVG that needs no other file."""

import io
import re

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FEDERATED, ALONE, POOLED, MUTED = "#0b6e69", "#c4741a", "#5b5ea6", "#6b7280"
SERIES = (FEDERATED, ALONE, POOLED, "#b03060", "#5a7d2a", "#2b6cb0", "#8a5a2b", "#111827")
"""Colours of classes and findings in one plot; as many as are drawn."""


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
