"""Whether the hospital's own file and its ledger admit a study, or one run of it.

The agent asks here before it opens a run, and the review before anybody approves: the two cannot disagree.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from client.budget import BudgetExceeded, check_lifetime, check_runs, training_cost
from client.policy import policy_refusals
from client.site_file import SiteFile
from privacy.accounting import PrivacyTargetError
from privacy.ledger import Ledger
from shared_models.study import Study

NO_RUN = ""
"""No run has this id: what is asked with it is about the next run, whatever its id will be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotAdmitted:
    """One reason against a study or run: ``reason`` is what the server is told, ``words`` stay at the site."""

    reason: Literal["policy", "budget"]
    words: str


def objections(
    file: SiteFile, ledger: Ledger, study: Study, *, run_id: str = NO_RUN
) -> tuple[NotAdmitted, ...]:
    """Everything that stands against run *run_id* of the study, the policy first. No image is opened for it."""
    by_policy = [NotAdmitted(reason="policy", words=words) for words in policy_refusals(file, study)]
    by_budget = []
    try:
        check_runs(ledger, file.policy, study, run_id=run_id)
    except BudgetExceeded as error:
        by_budget.append(NotAdmitted(reason="budget", words=str(error)))
    try:
        training_cost(study)
        check_lifetime(ledger, file.policy, study, run_id=run_id)
    except (BudgetExceeded, PrivacyTargetError) as error:
        by_budget.append(NotAdmitted(reason="budget", words=str(error)))
    return (*by_policy, *_against_grid(study), *by_budget)


def _against_grid(study: Study) -> Iterator[NotAdmitted]:
    """Whether the hospitals' shares of the noise fit on the grid of the sums; else each round would fail."""
    if study.privacy.mode != "distributed":
        return
    from client.global_step import check_noise_share
    from privacy.noise_share import GridError

    try:
        check_noise_share(study)
    except PrivacyTargetError:
        return  # told with the budget
    except GridError as error:
        yield NotAdmitted(reason="policy", words=str(error))
