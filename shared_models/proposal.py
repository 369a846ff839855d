"""``NAME.proposal.toml``: a study as the consortium proposes it, signed by its root key.

The signature tells a hospital that it looks at the study that the consortium means. Whether it takes part, the hospital
decides by itself; its approval is of the study's hash.
"""

import os
import re
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared_models.configuration import ConfigurationError, parse_toml, read_toml
from shared_models.identity_keys import Signature, fingerprint, is_signed, sign
from shared_models.study import Study, read_study

PROPOSAL_NAME = "study.proposal.toml"
HEADING = """\
# A study, proposed and signed by the consortium. For hospitals:  collegium-client review FILE
# Whoever changes a value makes another study, without this signature.
"""

_SIGNATURE = re.compile(r"^\s*signature\s*=", flags=re.MULTILINE)


class ProposedStudy(Study):
    """What stands in the file: a study, and the root key's signature on its hash."""

    signature: Signature


def sign_study(text: str, root_private: Ed25519PrivateKey, *, origin: str) -> tuple[Study, str]:
    """Sign a study given as TOML *text*. Returns the study and the text of its proposal, comments included.

    Raises:
        ConfigurationError: *text*, named *origin* in messages, is no study, or is signed already.
    """
    if _SIGNATURE.search(text):
        raise ConfigurationError(
            f"{origin}: is a proposal already; propose the study.toml that it was made of"
        )
    study = parse_toml(text, Study, origin=origin)
    return study, f'{HEADING}signature = "{sign(root_private, _statement(study))}"\n\n{text}'


def write_proposal(path: Path, text: str) -> None:
    """Put a proposal's *text* at *path*, whole or not at all. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def read_proposal(path: Path, root: str) -> tuple[Study, str]:
    """Read a proposal and check its signature.

    Args:
        path: of the file.
        root: the consortium's root public key, one OpenSSH line.

    Returns:
        The study, and the signature in base64.

    Raises:
        ConfigurationError: the file has problems, is not signed, or not by this root key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path}: is not UTF-8 text; get the proposal from the coordinator again"
        ) from error
    if not _SIGNATURE.search(text):
        parse_toml(text, Study, origin=str(path))
        raise ConfigurationError(
            f"{path}: is a study that nobody signed. Ask the coordinator for the .proposal.toml that "
            "`collegium-server propose` makes of it"
        )
    proposed = parse_toml(text, ProposedStudy, origin=str(path))
    study = _unsigned(proposed)
    if not is_signed(root, _statement(study), proposed.signature):
        raise ConfigurationError(
            f"{path}: is not signed by the consortium's root key {fingerprint(root)}: a value was changed after it was "
            "signed, or it is another consortium's study. Get the proposal from the coordinator again"
        )
    return study, proposed.signature


def read_unverified(path: Path) -> Study:
    """Read a study, or a proposal without asking who signed it: for what decides nothing.

    Raises:
        ConfigurationError: the file has problems.
    """
    return _unsigned(read_toml(path, ProposedStudy)) if is_proposal(path) else read_study(path)


def is_proposal(path: Path) -> bool:
    """Whether the file claims a signature; one that cannot be read does not."""
    try:
        return _SIGNATURE.search(path.read_text(encoding="utf-8")) is not None
    except (OSError, UnicodeDecodeError):
        return False


def _unsigned(proposed: ProposedStudy) -> Study:
    return Study(**{name: getattr(proposed, name) for name in Study.model_fields})


def _statement(study: Study) -> bytes:
    return f"collegium-study-proposal-1\n{study.hash}".encode("ascii")
