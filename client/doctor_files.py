"""Checks of the files that both sides of a site have: a node key, and a disk with room."""

from pathlib import Path

from shared_models.checkup import Outcome, Wrong, ok
from shared_models.file_checks import MIB, check_disk, read_private_file
from shared_models.key_files import KeyFileError, is_encrypted
from shared_models.node_keys import NodeKeyError, plain_node_key, public_line
from shared_models.passphrase import PassphraseError, asked_passphrase

NEED_BYTES, LEAST_BYTES = 1024 * MIB, 64 * MIB
MODELS_ON_DISK = 10


def check_node_key(path: Path, made_by: str) -> tuple[Outcome, bytes | None]:
    """Check a private node key.

    Args:
        path: of its file.
        made_by: the command that made it, for messages.

    Returns:
        What was found, and the key without encryption; None where its passphrase was not given.

    Raises:
        Wrong: it is missing, no key, or others may read it.
    """
    mend = f"put the key back that `{made_by}` made"
    raw = read_private_file(path, mend=mend)
    try:
        public_line(raw)
    except NodeKeyError as error:
        raise Wrong(f"{path} {error}; {mend}") from error
    if not is_encrypted(raw):
        return ok(f"{path} is there and private"), raw
    try:
        plain = plain_node_key(raw, path, asked_passphrase())
    except PassphraseError:
        return ok(f"{path} is there, private, and under a passphrase, which was not given"), None
    except (KeyFileError, NodeKeyError) as error:
        raise Wrong(str(error)) from error
    return ok(f"{path} is there, private, and opens under its passphrase"), plain


def check_room(state: Path, payload_bytes: int) -> Outcome:
    """Check that there is room below *state* for what a site keeps of models of that size. Raises Wrong."""
    return check_disk(
        state,
        need_bytes=max(NEED_BYTES, MODELS_ON_DISK * payload_bytes),
        least_bytes=max(LEAST_BYTES, 2 * payload_bytes),
    )
