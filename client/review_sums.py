"""Of a review: who could see what, and how many hospitals may be missing or dishonest."""

from collections.abc import Iterator

from client.review_sentences import Section, Sentence, plain, warning
from privacy.secure_aggregation.terms import Terms
from shared_models.study import Study

MOST_LINES = 8
"""More possible numbers of hospitals than this are not listed one by one."""


def who_sees_what(study: Study) -> Section:
    """What each party learns, and under which conditions."""
    terms = Terms.of(study.aggregation)
    return Section(
        title="Who could see what",
        sentences=(
            plain(
                f"The server sees sums over hospitals, of at least {terms.least} of them, and who takes part. It takes "
                f"{terms.threshold} hospitals to open a sum. The other hospitals and whoever gets the model see the "
                "model of each round, which is made of these sums."
            ),
            *_colluding(study, terms),
            *_pairs(study, terms),
            plain("For each possible number of hospitals (sites) in a round:"),
            *(plain(f"  {line}") for line in _lines(terms)),
            plain(
                "Who is a hospital of this consortium, the holder of its root key decides: compare the list and the "
                "fingerprints that collegium-client join shows."
            ),
        ),
    )


def _colluding(study: Study, terms: Terms) -> Iterator[Sentence]:
    honest = terms.least - terms.num_colluding
    if terms.num_colluding == 0:
        yield warning(
            "num_colluding = 0: the promise that single contributions stay hidden holds only while no other hospital "
            "works together with the server, and none is curious: from a sum and its own part each can work out the "
            f"sum of the others. {_what_then(study)}"
        )
        return
    yield plain(
        f"Up to {terms.num_colluding} other hospitals may work together with the server, and still this hospital's "
        f"contribution is only seen in a sum with those of other honest hospitals: {honest} at least, this one "
        "included."
    )


def _pairs(study: Study, terms: Terms) -> Iterator[Sentence]:
    if terms.least == 2:
        yield warning(
            "Sums of two hospitals may be opened: each of the two can then take its own part off and has the other's. "
            f"{_what_then(study)}"
        )


def _what_then(study: Study) -> str:
    if study.privacy.mode == "none":
        return "What they would see is exact: nothing else protects it."
    if study.evaluation.unnoised:
        return (
            "What they would see of training carries this hospital's own noise, so ε above still holds; figures of "
            "validation and test they would see exactly."
        )
    return "What they would see carries this hospital's own noise: ε above still holds."


def _lines(terms: Terms) -> tuple[str, ...]:
    lines = terms.explain()
    if len(lines) <= MOST_LINES:
        return lines
    left_out = len(lines) - MOST_LINES
    return (*lines[: MOST_LINES - 1], f"… ({left_out} numbers between) …", lines[-1])
