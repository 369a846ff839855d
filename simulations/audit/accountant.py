"""Whether what hospitals say they have spent is what they did, across restarts."""

import dp_accounting as dp
from dp_accounting import pld

from client.budget import training_cost
from privacy.accounting import COUNT_STANDARD_DEVIATION
from shared_models.study import Study
from simulations.audit.findings import Finding, Findings
from simulations.audit.short_run import ShortRun, SiteAfter

_INTERVAL, _NEAR = 1e-4, 1e-6


def accountant(study: Study, run: ShortRun) -> Findings:
    """Compare the ledgers, the hospitals' reports and the study with the steps that were seen.

    Args:
        study: which is audited.
        run: a short run of it.
    """
    delta = run.study.privacy.delta
    epsilon = run.study.privacy.epsilon
    if delta is None or epsilon is None:
        raise RuntimeError("a study with privacy has epsilon and delta")
    seen = {site.name: _seen_epsilon(run.study, site, delta) for site in run.sites}
    ledger = {
        site.name: 0.0 if site.ledger_cost is None else site.ledger_cost.epsilon(delta) for site in run.sites
    }
    reported = {site.name: (site.result.epsilon or 0.0) if site.result else 0.0 for site in run.sites}
    return (
        Finding(what="hospitals that were killed and came back", seen=run.num_restarts, least=2),
        Finding(
            what="rounds not charged just once with all their steps",
            seen=sum(_mischarged(run.study, site) for site in run.sites),
            most=0,
        ),
        Finding(what="vectors that left before the charge was on disk", seen=run.uncharged, most=0),
        Finding(what="requests of an earlier round that were answered anew", seen=run.repeated, most=0),
        Finding(
            what="epsilon by the ledgers, distance from that of the steps seen",
            seen=max(abs(ledger[name] - seen[name]) for name in seen),
            most=_NEAR,
        ),
        Finding(
            what="epsilon by the hospitals' reports, distance from the same",
            seen=max(abs(reported[name] - seen[name]) for name in seen),
            most=_NEAR,
        ),
        Finding(
            what="epsilon of the steps seen, largest of a hospital",
            seen=max(seen.values()),
            most=epsilon,
        ),
        Finding(
            what=f"epsilon of all {study.num_steps} steps of the study, recomputed",
            seen=_study_epsilon(study),
            most=study.privacy.epsilon,
        ),
    )


def _mischarged(study: Study, site: SiteAfter) -> int:
    """Rounds that the hospital answered and did not charge once with all steps, or charged and never began."""
    expected = [(number, study.training.local_steps) for number in site.trained]
    charged = [entry for entry in site.charged if entry[0] <= study.training.num_rounds]
    return len(set(expected) ^ set(charged)) + len(charged) - len(set(charged))


def _seen_epsilon(study: Study, site: SiteAfter, delta: float) -> float:
    """Of the rounds in which the hospital answered, with the noise that the study demands."""
    cost = training_cost(study)
    if cost is None:
        raise RuntimeError("a study with privacy has a cost")
    steps = len(site.trained) * study.training.local_steps
    return composed_epsilon(
        sample_rate=study.training.sample_rate,
        noise_multiplier=cost.noise_multiplier,
        num_steps=steps,
        delta=delta,
    )


def _study_epsilon(study: Study) -> float:
    cost = training_cost(study)
    if cost is None or study.privacy.delta is None:
        raise RuntimeError("a study with privacy has a cost")
    return composed_epsilon(
        sample_rate=study.training.sample_rate,
        noise_multiplier=cost.noise_multiplier,
        num_steps=study.num_steps,
        delta=study.privacy.delta,
    )


def composed_epsilon(*, sample_rate: float, noise_multiplier: float, num_steps: int, delta: float) -> float:
    """Epsilon of the noised count and so many steps, by privacy loss distributions, patients added or removed."""
    accountant = pld.PLDAccountant(
        dp.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=_INTERVAL
    )
    accountant.compose(dp.GaussianDpEvent(COUNT_STANDARD_DEVIATION))
    if num_steps:
        step = dp.PoissonSampledDpEvent(sample_rate, dp.GaussianDpEvent(noise_multiplier))
        accountant.compose(step, num_steps)
    return float(accountant.get_epsilon(delta))
