"""A plan in words and tables: with frames on a terminal, as plain text elsewhere."""

from collections.abc import Iterable, Iterator
from math import sqrt

from rich import box
from rich.console import Console
from rich.table import Table

from privacy.planning import Noise
from shared_models.visible_text import visible
from simulations.plan import CostEntry, Plan, TrafficTotal

WIDTH = 118
"""Of tables that go into a file or a pipe."""


def print_plan(plan: Plan) -> None:
    """Print *plan* to standard output."""
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=WIDTH)
    _say(out, _heading(plan))
    _say(
        out,
        ("", "Noise on the mean gradient of a step, in units of max_grad_norm: in each weight / in L2 norm"),
    )
    out.print(_costs(out, plan))
    _say(out, _about_noise(plan))
    if plan.overshoots:
        _say(
            out,
            (
                "",
                "Overshoot of the distributed mode: noise over what the promise needs, "
                f"√(sites in the sum / {plan.noise_shares})",
            ),
        )
        out.print(_overshoots(out, plan))
    _say(out, ("", "Bytes and exchanges of one site, in a run without failures; TLS and Flower come on top"))
    out.print(_traffic(out, plan.traffic))
    _say(out, (*_about_traffic(plan), "", *_about_evaluation(plan)))


def _say(out: Console, lines: Iterable[str]) -> None:
    for line in lines:
        out.print(line, soft_wrap=not out.is_terminal, markup=False)


def _table(out: Console, *columns: str) -> Table:
    """A table with a frame on a terminal, and plain text elsewhere."""
    lines = box.HEAVY_HEAD if out.is_terminal else None
    table = Table(box=lines, pad_edge=out.is_terminal)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _heading(plan: Plan) -> Iterator[str]:
    yield f"Plan of study {plan.study}, hash {plan.hash[:12]}: {visible(plan.title)}"
    if plan.mode == "none":
        yield (
            'NO PRIVACY (privacy.mode = "none"): nothing bounds what the sums and the model tell about a training '
            f"{visible(plan.unit)}; the tables say what privacy would cost."
        )
    if plan.refused is not None:
        yield f"THIS STUDY CANNOT KEEP ITS PROMISE: {plan.refused}"
    where = {
        "given": "",
        "scenario": ", as the scenario makes them",
        "least": ", the fewest that the study allows (patients.min_training): say --patients",
    }[plan.patients_from]
    sizes = set(plan.patients)
    each = (
        f"{plan.patients[0]:,} each" if len(sizes) == 1 else ", ".join(f"{size:,}" for size in plan.patients)
    )
    yield f"{len(plan.sites)} sites, {sum(plan.patients):,} training patients ({each}){where}"
    yield (
        f"{plan.steps:,} steps, sample rate {plan.sample_rate:g}: {plan.expected_batch:,.1f} patients in a step on "
        f"average, all sites together; {plan.num_weights:,} weights"
    )
    yield from _about_delta(plan)


def _about_delta(plan: Plan) -> Iterator[str]:
    delta = plan.delta
    largest = f"1 / {sum(plan.patients):,}^1.1 = {delta.largest_advised:.2g}"
    if not delta.of_study:
        yield f"δ = {delta.value:.2g}, the largest that is advised: {largest}. The study has none."
    elif delta.within:
        more = "; with more patients it is smaller" if plan.patients_from == "least" else ""
        yield f"δ = {delta.value:g}, not above the largest that is advised: {largest}{more}"
    else:
        yield f"δ = {delta.value:g} IS TOO LARGE for so few patients: at most {largest} is advised"


def _costs(out: Console, plan: Plan) -> Table:
    table = _table(
        out,
        "ε",
        "ε by PLD",
        "ε by RDP",
        "σ",
        "curator",
        "distributed",
        "local",
        "",
    )
    for entry in plan.costs:
        table.add_row(*_cost(entry), style="bold" if entry.of_study else None)
    return table


def _cost(entry: CostEntry) -> tuple[str, ...]:
    mark = "← the study" if entry.of_study else ""
    if entry.noise_multiplier is None:
        return (f"{entry.epsilon:g}", *["cannot be reached", "", "", "", "", ""], mark)
    return (
        f"{entry.epsilon:g}",
        f"{entry.epsilon_pld:.2f}",
        f"{entry.epsilon_rdp:.2f}",
        f"{entry.noise_multiplier:.3g}",
        _noise(entry.curator),
        _noise(entry.distributed),
        _noise(entry.local),
        mark,
    )


def _noise(noise: Noise | None) -> str:
    return "–" if noise is None else f"{noise.deviation:.3g} / {noise.norm:.3g}"


def _about_noise(plan: Plan) -> Iterator[str]:
    yield (
        "PLD is the claim of a run. RDP computes the same another way, as a cross-check, and is larger; a hospital's "
        "lifetime budget adds runs up by RDP. Both count all steps that the study allows, burned rounds included."
    )
    yield (
        "curator: somebody trusted with all patients. distributed: one step a round, all sites in the sum. local: each "
        "site adds all of the noise. The same number of steps in all three."
    )
    if not plan.overshoots:
        yield "distributed needs aggregation.num_colluding of 1 at least, which this study does not have."
    entry = plan.own
    noise = None if entry is None else getattr(entry, plan.mode, None)
    if noise is not None:
        yield (
            f"A mean gradient has a norm of 1 at most. In this study the noise of one step has {noise.norm:.3g}, "
            f"averaged over all {plan.steps:,} steps {noise.norm / sqrt(plan.steps):.3g}."
        )


def _overshoots(out: Console, plan: Plan) -> Table:
    table = _table(out, "sites in the sum", "overshoot")
    for one in plan.overshoots:
        table.add_row(str(one.num_sites), f"{one.factor:.2f}")
    return table


def _traffic(out: Console, traffic: TrafficTotal) -> Table:
    table = _table(
        out,
        "exchange",
        "times",
        "down, each",
        "up, each",
        "down, in all",
        "up, in all",
    )
    for one in traffic.by_kind:
        table.add_row(
            one.kind,
            f"{one.times:,}",
            f"{one.most_down:,}",
            f"{one.most_up:,}",
            f"{one.down:,}",
            f"{one.up:,}",
        )
    table.add_row(
        "in all", f"{traffic.exchanges:,}", "", "", f"{traffic.down:,}", f"{traffic.up:,}", style="bold"
    )
    return table


def _about_traffic(plan: Plan) -> Iterator[str]:
    traffic = plan.traffic
    yield (
        f"3 exchanges in each of {traffic.rounds:,} rounds and in the final test, 3 in each of {traffic.batches:,} "
        f"setups (one for {traffic.rounds_per_batch} rounds). In all {_megabytes(traffic.down)} down, "
        f"{_megabytes(traffic.up)} up at each site."
    )
    if plan.if_distributed is not None:
        other = plan.if_distributed
        yield (
            f"In distributed mode as many steps take {other.rounds:,} rounds: {_megabytes(other.down)} down, "
            f"{_megabytes(other.up)} up, {other.exchanges:,} exchanges."
        )


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"


def _about_evaluation(plan: Plan) -> Iterator[str]:
    known = plan.evaluation
    if known.epsilon is None or known.bin_deviation is None:
        yield "Evaluation: EXACT; validation and test patients have no differential privacy (evaluation.unnoised)."
        return
    spread = f", over {known.releases} validations" if known.releases > 1 else ""
    several = known.num_histograms > 1
    dice = known.assumed_dice is not None
    word, value, moved = (
        ("Dice", known.assumed_dice, known.dice_deviation)
        if dice
        else ("AUROC", known.assumed_auroc, known.auroc_deviation)
    )
    each = 1 if dice else 2
    pairs = f"{known.num_histograms} × {each}" if several else f"{each}"
    yield (
        f"Evaluation: ε = {known.epsilon:g} for each validation patient{spread}, and for each test patient. Each of "
        f"{pairs} × {known.num_bins} bins of a sum over all sites has noise of {known.bin_deviation:.1f} patients "
        "(standard deviation)."
    )
    if known.num_tested is None:
        yield f"What this does to {word} depends on the number of test patients: say --test-patients."
    elif moved is None:
        yield (
            f"With {known.num_tested:,} test patients the noise leaves no {word} in many cases: fewer bins, or more ε."
        )
    else:
        spread_over = "evenly spread over the classes or findings" if several else "half of them positive"
        model = f"{spread_over}, and a calibrated model of"
        if dice:
            model = "all of whom have what is looked for, and a model of"
        yield (
            f"Simulated: with {known.num_tested:,} test patients, {model} "
            f"{word} {value or 0:g}, this noise moves the final {'mean ' * (several or dice)}{word} by ±{moved:.3f} "
            "(standard deviation); who happens to be a test patient comes on top."
        )
