"""The model card in sections of sentences and tables, from which the terminal's text and the page are made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from client.review_training import network_in_words, preparation_in_words
from privacy.interpretation import best_guess
from shared_models.model_card import (
    MIN_STATEMENT_PATIENTS,
    NOT_A_DEVICE,
    CardInterval,
    CardMetric,
    CardOutput,
    CardPoint,
    ModelCard,
)
from shared_models.model_file import TrainedModel
from shared_models.quality import Quality
from shared_models.visible_text import quoted, visible

POINT_FIGURES = ("sensitivity", "specificity", "ppv", "npv")


@dataclass(frozen=True, slots=True, kw_only=True)
class CardTable:
    """Cells are text that may be shown; the first column names the row."""

    caption: str = ""
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSection:
    """``kind``: whether it warns of something."""

    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[CardTable, ...] = ()
    kind: Literal["plain", "note", "alarm"] = "plain"


def sections_of(model: TrainedModel) -> tuple[CardSection, ...]:
    """Return the card of a model, what it is not for first."""
    card = model.card
    found = [
        CardSection(title=NOT_A_DEVICE, sentences=(visible(card.intended_use),), kind="alarm"),
        _what_it_is(model),
        _images(card),
        _training(card),
        _privacy(card),
        *_test(model),
        *_points(card),
        *_calibration(card),
        *_subgroups(model),
        CardSection(title="What was not looked at", sentences=tuple(map(visible, card.limits)), kind="note"),
        _file(model),
    ]
    return tuple(found)


def _what_it_is(model: TrainedModel) -> CardSection:
    card = model.card
    num_weights = sum(weight.numel() for weight in model.model.parameters())
    outputs = "one output" if len(card.outputs) == 1 else f"{len(card.outputs)} outputs"
    return CardSection(
        title="What it is",
        sentences=(
            f"{quoted(card.study.title)}, study “{card.study.name}”.",
            card.study.task.in_words,
            f"{network_in_words(card.study.model)}: {num_weights:,} weights, {outputs}: {quoted(*card.outputs)} "
            f"({card.activation}).",
        ),
    )


def _images(card: ModelCard) -> CardSection:
    image, quality = card.study.image, card.study.quality
    return CardSection(
        title="Images that it is for",
        sentences=(
            f"DICOM Modality {quoted(*image.modalities)}; others are refused.",
            *_gates(quality),
            preparation_in_words(image),
        ),
    )


def _gates(quality: Quality) -> Iterator[str]:
    for words, codes in (
        ("View Position", quality.views),
        ("Body Part Examined", quality.body_parts),
        ("Photometric Interpretation", quality.photometric),
    ):
        if codes:
            unstated = "" if quality.unstated == "refuse" or words.startswith("Photo") else ", or not stated"
            yield f"{words} {quoted(*codes)}{unstated}; others are refused."
    if (quality.min_rows, quality.min_columns) != (1, 1):
        yield f"At least {quality.min_rows} rows and {quality.min_columns} columns."
    if (quality.max_rows, quality.max_columns) != (65535, 65535):
        yield f"At most {quality.max_rows} rows and {quality.max_columns} columns."


def _training(card: ModelCard) -> CardSection:
    kept = (
        ""
        if card.kept_round == card.rounds
        else f" The model is that of round {card.kept_round}, which validated best."
    )
    return CardSection(
        title="How it was trained",
        sentences=(
            f"{card.num_sites} hospitals trained it together in {card.rounds} rounds; no image left any of them.{kept}",
            f"Run {visible(card.run_id)}.",
        ),
    )


def _privacy(card: ModelCard) -> CardSection:
    privacy, unit = card.privacy, visible(card.privacy.unit)
    colluding = (
        f"no more than {privacy.num_colluding} of them work together with it"
        if privacy.num_colluding
        else "none of them works together with it"
    )
    masks = (
        f"The server opened sums of at least {privacy.min_sites_in_sum} hospitals and nothing else, as long as "
        f"{colluding}."
    )
    evaluation = (
        f"A validation or test {unit} loses at most ε = {privacy.evaluation_epsilon:g}."
        if privacy.evaluation_epsilon is not None
        else f"Validation and test {unit}s have no differential privacy: exact counts of their scores were summed."
    )
    if privacy.epsilon is None or privacy.delta is None:
        none = f"None: nothing bounds what the model tells about a training {unit}."
        return CardSection(title="Differential privacy", sentences=(none, masks, evaluation), kind="note")
    guess = best_guess(epsilon=privacy.epsilon, delta=privacy.delta)
    shares = (
        "Each hospital added all of the noise by itself (mode local)."
        if privacy.mode == "local"
        else "The hospitals shared the noise (mode distributed): the promise rests on secure aggregation."
    )
    return CardSection(
        title="Differential privacy",
        sentences=(
            f"A training {unit} loses at most ε = {privacy.epsilon:.3g} at δ = {privacy.delta:g} in the whole run: "
            "whoever guesses from the model whether a certain one took part, with even odds beforehand, is right with "
            f"probability at most {guess:.1%}.",
            shares,
            masks,
            evaluation,
        ),
    )


def _test(model: TrainedModel) -> Iterator[CardSection]:
    card, task = model.card, model.task
    if not card.test:
        yield CardSection(title="Test", sentences=("There are no figures of a test.",), kind="note")
        return
    tables = [
        CardTable(
            headings=("figure", "value", "95 % interval", "noise ±"),
            rows=tuple(
                (heading, *_metric_cells(card.test[metric]))
                for metric, heading in task.headings
                if metric in card.test
            ),
        )
    ]
    if task.parts is not None:
        tables.append(
            CardTable(
                caption=f"Each {task.parts.word}; below a figure its 95 % interval.",
                headings=(task.parts.word, *(heading for _, heading in task.parts.columns)),
                rows=tuple(
                    (
                        visible(name),
                        *(
                            _with_interval(card.test.get(f"{metric}/{name}"))
                            for metric, _ in task.parts.columns
                        ),
                    )
                    for name in task.parts.names
                ),
            )
        )
    about = "about " if card.privacy.evaluation_noised else ""
    num = 0.0 if card.tested is None else card.tested
    noised = (
        "The counts carry noise that protects them: ± is what it does to a figure; the intervals have it in them."
        if card.privacy.evaluation_noised
        else "The counts are exact."
    )
    yield CardSection(
        title="Test",
        sentences=(
            f"On {about}{num:.0f} {visible(card.privacy.unit)}s of the hospitals that trained it, who had no part in "
            f"the training. {noised}",
        ),
        tables=tuple(tables),
    )


def _points(card: ModelCard) -> Iterator[CardSection]:
    rows = [(one, point) for one in card.by_output for point in one.points]
    if not rows:
        return
    yield CardSection(
        title="Operating points",
        sentences=(
            "Scores from the threshold on are taken for positive. Where a study wants a sensitivity or a specificity, "
            "validation patients decided where the threshold lies; the figures are those of the test.",
        ),
        tables=(
            CardTable(
                headings=("point", "threshold", *POINT_FIGURES),
                rows=tuple(_point_row(one, point, several=len(card.by_output) > 1) for one, point in rows),
            ),
        ),
    )


def _point_row(one: CardOutput, point: CardPoint, *, several: bool) -> tuple[str, ...]:
    name = visible(f"{one.name}: {point.name}" if several else point.name) + f"\n{visible(point.wanted)}"
    if point.threshold is None:
        return (f"{name}: {visible(point.missing or '')}", "none", *("–" for _ in POINT_FIGURES))
    figures = (
        _with_interval(CardMetric(value=point.figures.get(figure), interval=point.intervals.get(figure)))
        for figure in POINT_FIGURES
    )
    return (name, f"{point.threshold:.3g}", *figures)


def _calibration(card: ModelCard) -> Iterator[CardSection]:
    tables = tuple(
        CardTable(
            caption=visible(one.name) if len(card.by_output) > 1 else "",
            headings=("score", "patients", "mean", "share who had it", "stated"),
            rows=tuple(
                (
                    f"{group.low:.3g} to {group.high:.3g}",
                    f"{group.num_patients:.0f}",
                    _figure(group.predicted),
                    _with_interval(CardMetric(value=group.observed, interval=group.interval)),
                    "yes" if card.statement(one.name, (group.low + group.high) / 2) else "no",
                )
                for group in one.calibration
            ),
        )
        for one in card.by_output
        if one.calibration
    )
    if tables:
        yield CardSection(
            title="What scores meant in the test",
            sentences=(
                "Of patients with a score in a range, how many had what the score is of. It is stated of readings "
                f"where at least {MIN_STATEMENT_PATIENTS} patients had such a score and the interval is not too wide. "
                "Where fewer or more patients have it than in the test, it does not hold.",
            ),
            tables=tables,
        )


def _subgroups(model: TrainedModel) -> Iterator[CardSection]:
    card = model.card
    if not card.subgroups:
        return
    headings = [(metric, heading) for metric, heading in model.task.headings if metric != "loss"]
    attributes = dict.fromkeys(one.attribute for one in card.subgroups)
    yield CardSection(
        title="Groups of the test's patients",
        sentences=(
            "Below a figure its 95 % interval: where intervals overlap, groups cannot be said to differ.",
        ),
        tables=tuple(
            CardTable(
                headings=(attribute, "patients", *(heading for _, heading in headings)),
                rows=tuple(
                    (
                        visible(one.name),
                        _figure(one.metrics["num_patients"].value, digits=0),
                        *(_with_interval(one.metrics.get(metric)) for metric, _ in headings),
                    )
                    for one in card.subgroups
                    if one.attribute == attribute
                ),
            )
            for attribute in attributes
        ),
    )


def _file(model: TrainedModel) -> CardSection:
    versions = ", ".join(f"{visible(name)} {visible(number)}" for name, number in model.card.versions.items())
    return CardSection(
        title="The file",
        sentences=(
            f"Digest over card and weights: {model.digest}. Hospitals that have the same model read the same digest, "
            "which the coordinator has in result.json; it shows mix-ups and damage, not forgery.",
            f"Study hash: {model.card.study_hash}. Trained with {versions}.",
        ),
    )


def _metric_cells(metric: CardMetric) -> tuple[str, str, str]:
    return _figure(metric.value), _interval(metric.interval), _figure(metric.noise)


def _with_interval(metric: CardMetric | None) -> str:
    """A figure, and below it its interval; numbers of patients are whole."""
    if metric is None or metric.value is None:
        return "–"
    if metric.value > 1.5:
        return f"{metric.value:.0f}"
    interval = "" if metric.interval is None else f"\n{_interval(metric.interval, digits=2)}"
    return f"{_figure(metric.value)}{interval}"


def _figure(value: float | None, *, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(interval: CardInterval | None, *, digits: int = 3) -> str:
    return "–" if interval is None else f"{interval.low:.{digits}f}–{interval.high:.{digits}f}"


def headline(sections: Sequence[CardSection]) -> str:
    """The first sentence of what it is, for titles."""
    return next(one.sentences[0] for one in sections if one.title == "What it is")
