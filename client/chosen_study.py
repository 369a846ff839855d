"""Which study a command is about: the file that was named, or the one that the hospital approved."""

from pathlib import Path

from client.approvals import Approvals
from client.membership import root_key
from client.site_file import SiteFile
from shared_models.configuration import ConfigurationError
from shared_models.proposal import is_proposal, read_proposal
from shared_models.study import Study, read_study


def chosen_study(file: SiteFile, approvals: Approvals, path: Path | None) -> Study:
    """Return the study in *path*, a study or a proposal; without one the study that was approved last.

    Raises:
        ConfigurationError: the file has problems, or nothing is approved.
    """
    if path is not None:
        return read_proposal(path, root_key(file))[0] if is_proposal(path) else read_study(path)
    approved = approvals.approved()
    if not approved:
        raise ConfigurationError(
            "no study is approved here: say with --study which file to look at, or review a proposal first: "
            "collegium-client review NAME.proposal.toml"
        )
    return approved[-1]
