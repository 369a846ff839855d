"""The errors of a site's own files and machine: each tells its operator what to mend, and waiting does not help."""

from client.device import DeviceError
from client.membership import MembershipError
from client.secret import SecretError
from privacy.accounting import PrivacyTargetError
from privacy.clipping import UnsupportedModelError
from privacy.journal import JournalError
from shared_models.configuration import ConfigurationError

SITE_ERRORS = (
    ConfigurationError,
    DeviceError,
    JournalError,
    MembershipError,
    PrivacyTargetError,
    SecretError,
    UnsupportedModelError,
)
