"""What the hospital refuses before it looks at any image."""

from collections.abc import Iterator

from client.site_file import Policy, SiteFile
from shared_models.study import Study


def policy_refusals(site: SiteFile, study: Study) -> tuple[str, ...]:
    """Every line of the site's file that does not allow the study, in words; none where all do."""
    return (
        *_about_privacy(site, study),
        *_about_model(site.policy, study),
        *_about_sums(site.policy, study),
        *_about_memory(site, study),
    )


def _about_privacy(site: SiteFile, study: Study) -> Iterator[str]:
    policy = site.policy
    if study.privacy.mode == "none" and not policy.allow_no_privacy:
        yield (
            "the study trains WITHOUT differential privacy and site.toml does not allow it; "
            "set policy.allow_no_privacy = true only if the patients of this site may be exposed"
        )
    if study.privacy.mode == "distributed" and not policy.allow_distributed_noise:
        yield (
            'privacy.mode = "distributed": the noise that protects this site\'s patients is in part that of others, '
            "and site.toml does not allow it; set policy.allow_distributed_noise = true to rely on them and on secure "
            "aggregation"
        )
    if policy.lifetime_epsilon is not None and (study.privacy.mode == "none" or study.evaluation.unnoised):
        yield (
            f"policy.lifetime_epsilon = {policy.lifetime_epsilon:g} covers all patients, and the study has "
            'privacy.mode = "none" or evaluation.unnoised = true, which promise some of them nothing'
        )
    if site.testing is not None and study.privacy.mode != "none":
        yield "testing.sampling_seed makes noise predictable; remove [testing] from site.toml"


def _about_model(policy: Policy, study: Study) -> Iterator[str]:
    if study.task.kind not in policy.allowed_tasks:
        yield f'task.kind = "{study.task.kind}" is not one of policy.allowed_tasks = {list(policy.allowed_tasks)}'
    if study.model.architecture not in policy.allowed_architectures:
        yield (
            f'model.architecture = "{study.model.architecture}" is not one of policy.allowed_architectures = '
            f"{list(policy.allowed_architectures)}"
        )


def _about_sums(policy: Policy, study: Study) -> Iterator[str]:
    if study.aggregation.threshold < policy.min_threshold:
        yield (
            f"policy.min_threshold = {policy.min_threshold}, and in the study {study.aggregation.threshold} sites open "
            "a sum (aggregation.threshold)"
        )
    smallest = study.aggregation.min_sites_in_sum
    if policy.min_cohort > smallest:
        yield (
            f"policy.min_cohort = {policy.min_cohort}, and the study lets sums of {smallest} sites be opened "
            "(aggregation.threshold, aggregation.min_cohort)"
        )


def _about_memory(site: SiteFile, study: Study) -> Iterator[str]:
    rows = study.training.rows_per_patient
    if rows > site.compute.physical_batch:
        yield (
            f"compute.physical_batch = {site.compute.physical_batch}, and in the study a patient has up to {rows} "
            "images in a step, copies included (training.images_per_patient × training.augmentations), which must be "
            f"in memory together; set compute.physical_batch to {rows} at least"
        )
