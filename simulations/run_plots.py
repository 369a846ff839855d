"""Plots of a run: its headline by round and by site, ε, and seconds."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from server.result import BaselineMetrics, Result, SiteEntry
from simulations.plots import ALONE, FEDERATED, MUTED, POOLED, drawn_as_svg, new_figure

PHASES = {
    "setup": ("setup of secrets", "#9ca3af"),
    "exchange": ("training and masked vectors", FEDERATED),
    "confirm": ("confirm survivors", ALONE),
    "unmask": ("open the sum", POOLED),
    "aggregate": ("aggregate", "#111827"),
}


def alone_mean(result: Result, metric: str) -> float | None:
    """Mean of a metric, on the test patients of all sites, of the models that sites trained alone."""
    if result.baselines is None:
        return None
    found = (alone.metrics.get(metric) for alone in result.baselines.alone.values())
    values = [value for value in found if value is not None]
    return sum(values) / len(values) if values else None


def federated(result: Result, metric: str) -> float | None:
    """Of the federated model, exact where the simulation knows it, else as the server knows it."""
    return (result.exact_test or result.test).get(metric)


def headline_over_rounds(result: Result, metric: str, word: str) -> Markup | None:
    """The headline metric after each round that was validated, beside the test and the baselines."""
    points = [
        (entry.round, entry.metrics[metric])
        for entry in result.rounds
        if entry.metrics is not None and entry.metrics[metric] is not None
    ]
    if not points:
        return None
    figure, axes = new_figure()
    noised, unit = " (noised)" if result.privacy.evaluation_noised else "", result.privacy.unit
    rounds, values = zip(*points, strict=True)
    axes.plot(rounds, values, "o-", color=FEDERATED, label=f"federated, validation {unit}s{noised}")
    last = result.rounds[-1].round
    if (test := federated(result, metric)) is not None:
        label = f"federated, test {unit}s{', exact' if result.exact_test else noised}"
        axes.plot([last], [test], "*", markersize=13, color=FEDERATED, label=label, clip_on=False)
    if (mean := alone_mean(result, metric)) is not None:
        axes.axhline(mean, color=ALONE, linestyle="--", label=f"alone, mean of sites, test {unit}s")
    if result.baselines is not None and result.baselines.pooled is not None:
        pooled = result.baselines.pooled.metrics.get(metric)
        if pooled is not None:
            axes.axhline(pooled, color=POOLED, linestyle=":", linewidth=2, label=f"pooled, test {unit}s")
    axes.set(xlabel="round", ylabel=word, xlim=(0, last + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn_as_svg(figure, f"{word} of the federated model by round, beside sites alone and pooled data")


def headline_by_site(result: Result, metric: str, word: str) -> Markup | None:
    """Test patients of each site under three models: its own, the federated, the pooled."""
    baselines = result.baselines
    sites = [site for site in result.sites if site.test is not None]
    if not sites:
        return None
    series: list[tuple[str, str, list[float | None]]] = []
    if baselines is not None and baselines.alone:
        series.append(("alone", ALONE, _own(baselines.alone, sites, metric)))
    if baselines is not None and baselines.left_out:
        series.append(("model of the others", MUTED, _own(baselines.left_out, sites, metric)))
    series.append(("federated", FEDERATED, [(site.test or {}).get(metric) for site in sites]))
    if baselines is not None and baselines.pooled is not None:
        by_site = baselines.pooled.by_site or {}
        series.append(("pooled", POOLED, [by_site.get(site.name, {}).get(metric) for site in sites]))
    figure, axes = new_figure()
    width = 0.8 / len(series)
    for number, (name, colour, values) in enumerate(series):
        places = [place + (number - (len(series) - 1) / 2) * width for place in range(len(sites))]
        axes.bar(places, [value or 0.0 for value in values], width * 0.92, color=colour, label=name)
        for place, value in zip(places, values, strict=True):
            if value is None:  # not 0: there is nobody of whom the figure could be
                axes.annotate(
                    "–",
                    (place, 0.0),
                    (0, 2),
                    xycoords=axes.get_xaxis_transform(),
                    textcoords="offset points",
                    ha="center",
                )
    lowest = min((value for _, _, values in series for value in values if value is not None), default=0.0)
    axes.set_ylim(max(0.0, min(0.5, lowest - 0.05)) if metric == "auroc" else 0.0, 1.0)
    axes.set_xticks(range(len(sites)), [_whom(site) for site in sites])
    axes.set_ylabel(f"{word}, own test {result.privacy.unit}s")
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.14))
    return drawn_as_svg(
        figure, f"{word} on each site's test patients: alone, of the others, federated, pooled"
    )


def _whom(site: SiteEntry) -> str:
    """The site, how many test patients it has, and of how many classes: what its bars rest on."""
    test = site.test or {}
    said = [site.name, f"n = {test.get('num_patients') or 0:.0f}"]
    if (classes := test.get("num_classes")) is not None:
        said.append(f"{classes:.0f} classes")
    return "\n".join(said)


def _own(
    baselines: Mapping[str, BaselineMetrics], sites: Sequence[SiteEntry], metric: str
) -> list[float | None]:
    """The metric on each site's test patients, of the baseline that has its name."""
    return [
        (baselines[site.name].own or {}).get(metric) if site.name in baselines else None for site in sites
    ]


def epsilon_by_round(result: Result) -> Markup | None:
    """What each site has spent after each round; None without privacy."""
    spent = [(site.name, site.epsilon_by_round) for site in result.sites if site.epsilon_by_round]
    if not spent:
        return None
    figure, axes = new_figure(height=2.6)
    for name, values in spent:
        axes.plot(*zip(*values, strict=True), marker=".", label=name)
    if result.privacy.epsilon is not None:
        axes.axhline(
            result.privacy.epsilon, color=MUTED, linestyle="--", linewidth=1, label="claim of the run"
        )
    axes.set(xlabel="rounds begun", ylabel="ε spent", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return drawn_as_svg(figure, "epsilon spent by each site after each round")


def seconds_by_round(result: Result) -> Markup | None:
    """How long the phases of each round took."""
    if not result.rounds:
        return None
    figure, axes = new_figure(height=2.6)
    rounds = [entry.round for entry in result.rounds]
    floor = [0.0] * len(rounds)
    for phase, (label, colour) in PHASES.items():
        values = [entry.seconds.get(phase, 0.0) for entry in result.rounds]
        axes.bar(rounds, values, 0.85, bottom=floor, color=colour, label=label)
        floor = [below + value for below, value in zip(floor, values, strict=True)]
    slowest = [entry.seconds.get("train_slowest_site", 0.0) for entry in result.rounds]
    if any(slowest):
        axes.plot(rounds, slowest, ".", color="#111827", markersize=4, label="slowest site's training")
    axes.set(xlabel="round", ylabel="seconds", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn_as_svg(figure, "seconds of each round by phase, one above the other")
