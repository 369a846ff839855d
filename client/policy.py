"""What the hospital refuses before it looks at any image."""

from client.site_file import SiteFile
from shared_models.study import Study


class PolicyRefused(Exception):
    """The study asks for something that ``site.toml`` does not allow."""


def check_study(site: SiteFile, study: Study) -> None:
    """Raise PolicyRefused where the site's policy does not allow the study. No image is opened for it."""
    policy = site.policy
    if study.privacy.mode == "none" and not policy.allow_no_privacy:
        raise PolicyRefused(
            "the study trains WITHOUT differential privacy and site.toml does not allow it; "
            "set policy.allow_no_privacy = true only if the patients of this site may be exposed"
        )
    if policy.lifetime_epsilon is not None and (study.privacy.mode == "none" or study.evaluation.unnoised):
        raise PolicyRefused(
            f"policy.lifetime_epsilon = {policy.lifetime_epsilon:g} covers all patients, and the study has "
            'privacy.mode = "none" or evaluation.unnoised = true, which promise some of them nothing'
        )
    if study.task.kind not in policy.allowed_tasks:
        raise PolicyRefused(
            f'task.kind = "{study.task.kind}" is not one of policy.allowed_tasks = {list(policy.allowed_tasks)}'
        )
    if study.model.architecture not in policy.allowed_architectures:
        raise PolicyRefused(
            f'model.architecture = "{study.model.architecture}" is not one of policy.allowed_architectures = '
            f"{list(policy.allowed_architectures)}"
        )
    if study.aggregation.threshold < policy.min_threshold:
        raise PolicyRefused(
            f"policy.min_threshold = {policy.min_threshold}, and in the study {study.aggregation.threshold} sites open "
            "a sum (aggregation.threshold)"
        )
    smallest = study.aggregation.min_sites_in_sum
    if policy.min_cohort > smallest:
        raise PolicyRefused(
            f"policy.min_cohort = {policy.min_cohort}, and the study lets sums of {smallest} sites be opened "
            "(aggregation.threshold, aggregation.min_cohort)"
        )
    if site.testing is not None and study.privacy.mode != "none":
        raise PolicyRefused("testing.sampling_seed makes noise predictable; remove [testing] from site.toml")
