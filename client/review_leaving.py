"""Of a review: what leaves the building, in which form, and how much of it."""

from collections.abc import Mapping

from client.review_sentences import Section, Sentence, counted, num_bytes, plain, warning
from privacy.accounting import COUNT_STANDARD_DEVIATION
from privacy.secure_aggregation.context import SIGNATURE_BYTES
from shared_models.architectures import outline
from shared_models.layouts import final_layout, training_layout
from shared_models.manifest import Manifest
from shared_models.study import Study
from shared_models.subgroups import groups_of
from shared_models.tasks.registry import task_of
from shared_models.visible_text import quoted


def what_leaves(study: Study) -> Section:
    """Everything that is computed from patients and leaves, with its size."""
    return Section(
        title="What leaves the building, and in which form",
        sentences=(
            *_sizes(study),
            plain(
                "Masked means: random numbers are added that nobody else knows as a whole, and that can be taken off "
                f"again only from the sum of the vectors of at least {study.aggregation.min_sites_in_sum} "
                "hospitals. The server can open such sums and nothing else; one hospital's vector by itself says "
                "nothing to it."
            ),
            _update(study),
            _weight(study),
            _statistics(study),
            *_subgroups(study),
            plain(
                "A refusal leaves as one word, such as “data” or “budget”; its reason stays in this hospital's "
                "journal. That this hospital takes part, and how long it takes to answer, can be seen."
            ),
            plain(
                "Nothing else leaves: no image, no label, no identifier or pseudonym. Nothing from outside is run here "
                "as a program; what comes in is the shared model."
            ),
        ),
    )


def vector_bytes(study: Study) -> Mapping[int, int]:
    """Bytes of the masked vector of each round, by its number; the last is the final test."""
    num_weights = Manifest.of(outline(study)).num_weights
    lengths = {
        number: training_layout(study, number, num_weights=num_weights).length
        for number in range(1, study.training.num_rounds + 1)
    }
    lengths[study.test_round] = final_layout(study).length
    return {number: SIGNATURE_BYTES + 4 * (length + 1) for number, length in lengths.items()}


def _sizes(study: Study) -> tuple[Sentence, ...]:
    sizes, last = vector_bytes(study), study.test_round
    bare = [
        number for number in sizes if number != last and number - 1 not in study.evaluation.validation_rounds
    ]
    larger = [number for number in sizes if number != last and number not in bare]
    text = "In each round one masked vector of numbers leaves: "
    parts = []
    if bare:
        parts.append(f"{num_bytes(sizes[bare[0]])} in {counted(len(bare), 'round')}")
    if larger:
        parts.append(
            f"{num_bytes(sizes[larger[0]])} in {counted(len(larger), 'round')}, validation figures included"
        )
    return (
        plain(
            f"{text}{', '.join(parts)}. After the last round one more leaves for the final test, "
            f"{num_bytes(sizes[last])}. In all {counted(len(sizes), 'vector')}, {num_bytes(sum(sizes.values()))}; "
            "beside them only keys, encrypted key shares, signatures and a hash of this hospital's journal, from which "
            "nothing about an image or a patient can be told."
        ),
    )


def _update(study: Study) -> Sentence:
    if study.privacy.mode == "distributed":
        return plain(
            "In it is the sum of what this hospital's patients, each cut to the same size, would change in this "
            "round's step, and the two figures that follow here. It carries this hospital's share of the noise before "
            "it is masked; only the sum over the hospitals carries enough."
        )
    inside = "In it is how the round's training changed the weights, and the two figures that follow here."
    if study.privacy.mode == "none":
        return warning(
            f"{inside} There is no noise on it: the sum of the hospitals' changes is exact, and can tell about "
            "patients."
        )
    return plain(f"{inside} It carries enough noise of this hospital's own before it is masked.")


def _weight(study: Study) -> Sentence:
    private, by_patients = study.privacy.mode != "none", study.aggregation.weights == "patients"
    if not by_patients and not private:
        return plain("The hospital's weight in the mean is 1; the number of its patients has no part in it.")
    if not by_patients:
        return plain(
            "The hospital's weight in the mean is 1. The number of its training patients is not sent; where training "
            f"needs it, noise of {COUNT_STANDARD_DEVIATION:g} patients (standard deviation) is added first, once a run."
        )
    if private:
        return plain(
            f"The number of training patients is in it as the hospital's weight, with noise of "
            f"{COUNT_STANDARD_DEVIATION:g} patients (standard deviation), drawn once a run."
        )
    return warning(
        "The exact number of training patients is in it as the hospital's weight: from a round in which this hospital "
        "is missing, the server can work it out."
    )


def _statistics(study: Study) -> Sentence:
    num = len(study.evaluation.validation_rounds)
    when = f"{counted(num, 'time')} during training and once at the end" if num else "once, at the end"
    what = f"Figures on how well the model does leave {when}: {task_of(study).statistics_in_words}"
    if study.evaluation.unnoised:
        return warning(f"{what}. These are EXACT, without noise; only the masks keep them apart from others.")
    return plain(f"{what}. Noise is added to each of these numbers before it is masked.")


def _subgroups(study: Study) -> tuple[Sentence, ...]:
    groups, floor = groups_of(study.evaluation), study.evaluation.min_subgroup
    if not groups:
        return ()
    sources = {
        "sex": "PatientSex",
        "age": "PatientAge, or birth date and StudyDate",
        "vendor": "Manufacturer",
    }
    named = "; ".join(
        f"{quoted(*names)} by {attribute} ({sources[attribute]})" for attribute, names in groups.items()
    )
    told = warning if study.evaluation.unnoised else plain
    how_sure = (
        ""
        if study.evaluation.unnoised
        else " With the noise it cannot know these numbers, and tells of a group only where the noised one is above "
        "that by three standard deviations of the noise."
    )
    return (
        told(
            f"The same figures of the final test leave once more for each of these groups of test patients: {named}. "
            "Who is in which group stays here. The server does not tell, or write down, figures of groups with fewer "
            f"than {floor} patients in all hospitals together, nor of others from which they could be worked out; it "
            f"does see them when it opens the sum.{how_sure}"
        ),
    )
