"""Of a review: which images the study takes as good enough, and below what this hospital would take no part."""

from collections.abc import Iterator

from client.index_report import Counts
from client.review_sentences import Sentence, counted, plain, warning
from client.site_file import SiteFile
from shared_models.quality import Quality
from shared_models.visible_text import quoted

LARGEST = Quality.model_fields["max_rows"].default


def which_are_good(study: Quality, file: SiteFile) -> Iterator[Sentence]:
    """What is asked of images beyond being readable, by the study and by the hospital itself."""
    asked = [*_codes(study), *_size(study)]
    if asked:
        yield plain(f"Of them only images {'; '.join(asked)} are used.")
    left_out = [*_pixels(study), *_identifying(study, file)]
    if left_out:
        yield plain(f"Left out are {', and '.join(left_out)}.")
    if study.burned_in == "use":
        yield warning(
            "Images whose header says that text in the picture identifies the patient are used "
            '(quality.burned_in = "use").'
        )
    if study.shared_pixels == "use":
        yield warning(
            "An image that is there under several Patient IDs counts for each of them (quality.shared_pixels = "
            '"use"): the person behind it is then protected as several patients, each with the whole ε.'
        )
    if file.quality.patient_conflicts == "refuse":
        yield plain(
            "Patients whose files contradict each other, or who seem to have several Patient IDs, are left out "
            "(quality.patient_conflicts, site.toml)."
        )
    if least := study.min_patients_per_class:
        yield plain(
            f"With fewer than {counted(least, 'training patient')} of any class a hospital takes no part "
            "(quality.min_patients_per_class)."
        )


def too_little(study: Quality, counts: Counts) -> Iterator[Sentence]:
    """What the counted images lack for the study's floors."""
    refused = "With these images the site refuses each run when it is opened."
    if counts.smallest_class < study.min_patients_per_class:
        yield warning(
            f"The class with fewest has {counted(counts.smallest_class, 'training patient')}, and the study asks for "
            f"{study.min_patients_per_class:,} (quality.min_patients_per_class). {refused}"
        )
    if study.max_unusable_share is not None and counts.unusable_share > study.max_unusable_share:
        yield warning(
            f"{counts.unusable_share:.1%} of the files cannot be used, and the study allows "
            f"{study.max_unusable_share:.1%} (quality.max_unusable_share). {refused}"
        )


def _codes(study: Quality) -> Iterator[str]:
    for codes, name in ((study.views, "view"), (study.body_parts, "body part")):
        if codes:
            silent = " or none" if study.unstated == "use" else ""
            yield f"that state {quoted(*codes)}{silent} as {name}"
    if study.photometric:
        yield f"stored as {quoted(*study.photometric)}"


def _size(study: Quality) -> Iterator[str]:
    for name, least, most in (
        ("rows", study.min_rows, study.max_rows),
        ("columns", study.min_columns, study.max_columns),
    ):
        bounds = [f"at least {least:,}"] * (least > 1) + [f"at most {most:,}"] * (most < LARGEST)
        if bounds:
            yield f"of {' and '.join(bounds)} {name}"


def _pixels(study: Quality) -> Iterator[str]:
    if study.blank == "refuse":
        yield "images of one value only"
    if study.max_saturated_share is not None:
        yield f"images with more than {study.max_saturated_share:.0%} of the pixels at their lowest or highest value"


def _identifying(study: Quality, file: SiteFile) -> Iterator[str]:
    if study.burned_in == "refuse":
        yield "images whose header says that text in the picture identifies the patient"
    if study.burned_in == "require-no":
        yield "images whose header does not say that no text in the picture identifies the patient"
    if study.shared_pixels == "refuse":
        yield "images that are there under several Patient IDs"
    if file.quality.identifiers == "refuse":
        yield "files that still hold what can identify somebody (quality.identifiers, site.toml)"
