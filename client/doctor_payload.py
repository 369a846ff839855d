"""With how many bytes the doctor measures the connection: as many as a round of the study sends each way."""

from pathlib import Path

from client.approvals import Approvals
from client.membership import MembershipError
from client.site_file import read_site
from client.site_journal import read_journal
from privacy.journal import JournalError
from shared_models.configuration import ConfigurationError
from shared_models.file_checks import MIB
from shared_models.proposal import read_unverified
from shared_models.study import Study

DEFAULT_PAYLOAD_BYTES = 4 * MIB


def payload_bytes(config: Path, study: Path | None) -> int:
    """Size of what a site gets in a round, and as much again of what it sends: four bytes for each trained weight.

    Args:
        config: a ``site.toml`` or ``network.toml``.
        study: a study or a proposal, whose signature is not asked for. Without one it is the study that the site
            approved last, or 4 MiB where none is known.

    Raises:
        ConfigurationError: *study* cannot be read.
    """
    known = read_unverified(study) if study is not None else _approved(config)
    if known is None:
        return DEFAULT_PAYLOAD_BYTES
    from shared_models.architectures import outline
    from shared_models.manifest import Manifest

    return 4 * Manifest.of(outline(known)).num_weights


def _approved(config: Path) -> Study | None:
    """The study approved last; None where it cannot be told, which the checks of the journal say why."""
    try:
        site = read_site(config)
        return next(reversed(Approvals(read_journal(site), site.state).approved()), None)
    except (ConfigurationError, JournalError, MembershipError):
        return None
