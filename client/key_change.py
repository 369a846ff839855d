"""A site's new keys take the old ones' place: in its journal first, which goes on under the new key, then on disk."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.renewed_keys import RenewedKeys
from client.site_file import SiteFile
from privacy.journal import Journal, JournalEdited
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import identity_line, public_bytes, read_identity_key
from shared_models.passphrase import PassphraseOf, asked_passphrase
from shared_models.roster import Roster


def take_new_keys(file: SiteFile, renewed: RenewedKeys, roster: Roster) -> bool:
    """Put new keys that the roster has in the old ones' place. The site must not be running.

    Done again, it ends what was broken off.

    Returns:
        Whether the journal's old key, or the new one alone, vouches for the change.

    Raises:
        ConfigurationError: the new key cannot be opened.
        JournalError: the journal cannot be used.
    """
    passphrase = asked_passphrase()
    path = renewed.place_of(file.consortium.identity_key)
    identity = read_identity_key(path, passphrase)
    if identity_line(identity) != renewed.identity_key:
        raise ConfigurationError(f"{path}: changed while it was read; join again")
    vouched = True
    if not _goes_on_under(file, renewed.identity_key):
        vouched = _renew_journal(file, identity, _old_identity(file, passphrase), roster)
    renewed.put_in_place()
    return vouched


def _renew_journal(
    file: SiteFile, identity: Ed25519PrivateKey, old: Ed25519PrivateKey | None, roster: Roster
) -> bool:
    """Have the journal go on under the new key. Returns whether the old one vouches for that."""
    lines = [past.identity_key for past in roster.revoked if past.name == file.name]
    lines = [identity_line(old), *lines] if old else lines
    written = next((line for line in lines if _goes_on_under(file, line)), None)
    if written is None:  # have it say what is wrong
        Journal(file.state, public_key=identity.public_key().public_bytes_raw())
        raise ConfigurationError("the journal changed while it was read; join again")
    endorsed = old is not None and identity_line(old) == written
    journal = Journal(file.state, public_key=public_bytes(written), identity=old if endorsed else None)
    journal.renew_key(identity, endorsed=endorsed)
    return endorsed


def _goes_on_under(file: SiteFile, line: str) -> bool:
    """Whether this is the key with which the journal is written now."""
    try:
        Journal(file.state, public_key=public_bytes(line))
    except JournalEdited:
        return False
    return True


def _old_identity(file: SiteFile, passphrase: PassphraseOf) -> Ed25519PrivateKey | None:
    """The old private key where it is there and opens; a hospital may have lost it or its passphrase."""
    for opened in (passphrase, asked_passphrase()):  # the new key's passphrase, or one of its own
        try:
            return read_identity_key(file.consortium.identity_key, opened)
        except ConfigurationError:
            continue
    return None
