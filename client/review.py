"""A proposed study in plain language, for those at a hospital who decide on it.

Every figure is computed from the study, the hospital's own file and its ledger; nothing is asked of anybody.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from client.admission import NO_RUN, objections
from client.index_report import Counts
from client.review_epsilon import what_epsilon_means, what_is_left
from client.review_leaving import what_leaves
from client.review_sentences import Section, Sentence, plain, refusal, warning
from client.review_sums import who_sees_what
from client.review_training import what_is_trained, which_images
from client.site_file import SiteFile
from privacy.ledger import Ledger
from shared_models.study import Study
from shared_models.study_changes import WEAKER, changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """The version of the study that was approved last; ``study`` is None where its file cannot be read any more."""

    study_hash: str
    study: Study | None
    time: str
    by: str


def review_study(
    study: Study,
    file: SiteFile,
    ledger: Ledger,
    *,
    earlier: Earlier | None,
    counts: Counts | None,
    now: datetime,
) -> tuple[Section, ...]:
    """Say what the study would mean for this hospital.

    Args:
        study: as proposed.
        file: the hospital's own.
        ledger: of this hospital.
        earlier: the version approved before, of the same name.
        counts: of the hospital's images for just this study, where they were counted.
        now: UTC.

    Returns:
        Sections in the order in which they are read.
    """
    return (
        what_is_trained(study, file.weights),
        which_images(study, file, counts, now),
        what_leaves(study),
        what_epsilon_means(study),
        what_is_left(study, ledger, file.policy, run_id=NO_RUN),
        who_sees_what(study),
        what_policy_says(study, file, ledger, run_id=NO_RUN),
        what_changed(study, earlier),
    )


def review_run(study: Study, file: SiteFile, ledger: Ledger, *, run_id: str) -> tuple[Section, ...]:
    """Say what one run of an approved study would mean: its cost, and what the policy says."""
    return (
        what_is_left(study, ledger, file.policy, run_id=run_id),
        what_policy_says(study, file, ledger, run_id=run_id),
    )


def what_policy_says(study: Study, file: SiteFile, ledger: Ledger, *, run_id: str) -> Section:
    """Every line of site.toml that refuses the study, or how it meets them."""
    against = objections(file, ledger, study, run_id=run_id)
    found: tuple[Sentence, ...] = tuple(refusal(one.words) for one in against)
    if against:
        found = (
            refusal(
                "This hospital's own file (site.toml) or its budget REFUSES the study. Nobody can approve it "
                "before that is changed there:"
            ),
            *found,
        )
    else:
        found = (*_met(study, file), *_each_run(file))
    return Section(title="What this hospital's policy says", sentences=found)


def what_changed(study: Study, earlier: Earlier | None) -> Section:
    """What differs from the version that was approved last."""
    return Section(
        title="What changed since the version that was approved last",
        sentences=tuple(_changes(study, earlier)),
    )


def _met(study: Study, file: SiteFile) -> Iterator[Sentence]:
    policy, aggregation = file.policy, study.aggregation
    yield plain("Nothing in this hospital's file (site.toml) refuses the study:")
    yield plain(
        f"  sums hold at least {aggregation.min_sites_in_sum} hospitals (policy.min_cohort asks for "
        f"{policy.min_cohort})"
    )
    yield plain(
        f"  {aggregation.threshold} hospitals open a sum (policy.min_threshold asks for {policy.min_threshold})"
    )
    yield plain(f"  the task “{study.task.kind}” and the model “{study.model.architecture}” are allowed")
    if study.privacy.mode == "none":
        yield warning("  studies without differential privacy are allowed (policy.allow_no_privacy = true)")
    if study.privacy.mode == "distributed":
        yield warning(
            "  studies whose noise the hospitals share are allowed (policy.allow_distributed_noise = true)"
        )
    yield plain(
        f"  when a run is opened: at least {max(policy.min_patients, study.patients.min_training)} training patients, "
        f"and at most {policy.max_unusable_share:.0%} of the files unusable"
    )


def _each_run(file: SiteFile) -> Iterator[Sentence]:
    num = file.policy.max_runs_per_study
    if file.policy.ask_each_run:
        yield plain(
            "Approving the study starts nothing by itself: each run waits until somebody here approves it too "
            "(policy.ask_each_run = true; collegium-client review --waiting)."
        )
    else:
        yield plain(
            f"Once approved, the server may begin up to {num} run{'s' * (num != 1)} without asking again "
            "(policy.ask_each_run = false)."
        )


def _changes(study: Study, earlier: Earlier | None) -> Iterator[Sentence]:
    if earlier is None:
        yield plain("No other version of a study of this name was approved here.")
        return
    yield plain(f"Version {earlier.study_hash[:12]} was approved on {earlier.time[:10]} by {earlier.by}.")
    if earlier.study is None:
        yield warning("Its text cannot be read any more, so nobody can say here what changed.")
        return
    found = changes(earlier.study, study)
    yield plain(f"{len(found)} value{'s' * (len(found) != 1)} changed:")
    for change in found:
        yield (warning if change.note == WEAKER else plain)(f"  {change.sentence}")
