"""Why a step of the protocol refuses, or fails.

::

    SecureAggregationError
    ├── Malformed                    bytes that are not the message they should be
    ├── TermsRefused                 the study's constants, or the cohort's size, break a bound
    │   ├── CohortTooSmall
    │   ├── CohortTooLarge
    │   ├── ThresholdTooLow          two survivor sets could both be confirmed
    │   └── TooFewHonest             one honest site could stand alone in a sum
    ├── CohortRefused                not an ordered list of sites of the pinned roster with this site in it
    │   └── RosterDiffers
    ├── Replayed                     a batch, round or step that is over, or was asked for with other contents
    ├── BadSignature                 not signed by the site that it names, or about something else
    ├── DuplicateKey                 two sites advertise the same key
    ├── OwnMessageChanged            the site's own message came back altered or not at all
    ├── TooFewSites                  fewer than the study or the site asks for
    ├── RoundSetRefused              the round set lacks this site, or holds a site that it did not accept
    ├── SurvivorsRefused             the survivors lack this site's vector, or are not in the round set
    ├── OtherSurvivorsConfirmed      this site confirmed other survivors for the round
    ├── TooFewConfirmations
    └── RoundFailed                  at the server: the round ends without a sum
        ├── BadDealer                a secret is not what its dealer committed to
        ├── BadHolder                a share is not what its dealer committed to
        ├── BadEscrow                an escrow does not hold what its site committed to
        └── SentinelDiffers          masks were left in the sum

A refusal leaves the state of the step as it was: everything is checked before anything is changed. Only
`SentinelDiffers` comes after the masks were taken off: the round is over then.
"""


class SecureAggregationError(ValueError):
    """The protocol does not go on with this message."""


class Malformed(SecureAggregationError):
    """Bytes that are not the message that they should be."""


class TermsRefused(SecureAggregationError):
    """A bound between threshold, cohort, colluders and the number of sites does not hold."""


class CohortTooSmall(TermsRefused):
    """Fewer sites than a sum needs."""


class CohortTooLarge(TermsRefused):
    """More sites than the study allows in one sum."""


class ThresholdTooLow(TermsRefused):
    """2 · threshold must exceed num_sites + num_colluding, else two survivor sets could both be confirmed."""


class TooFewHonest(TermsRefused):
    """Every sum must hold the vectors of two honest sites at least."""


class CohortRefused(SecureAggregationError):
    """The cohort is not a strictly increasing list of sites of the roster with this site in it."""


class RosterDiffers(CohortRefused):
    """The server works with another version of the roster."""


class Replayed(SecureAggregationError):
    """A batch, round or step that is over, or was asked for with other contents."""


class BadSignature(SecureAggregationError):
    """Not signed by the site that it names, or about something else."""


class DuplicateKey(SecureAggregationError):
    """Two sites advertise the same key."""


class OwnMessageChanged(SecureAggregationError):
    """This site's own message came back altered, or not at all."""


class TooFewSites(SecureAggregationError):
    """Fewer sites than the study or this site asks for."""


class RoundSetRefused(SecureAggregationError):
    """The round set lacks this site, or holds one whose bundle it did not accept."""


class SurvivorsRefused(SecureAggregationError):
    """The survivors lack this site's own vector, or are not all of the round set."""


class OtherSurvivorsConfirmed(SecureAggregationError):
    """This site confirmed other survivors for this round."""


class TooFewConfirmations(SecureAggregationError):
    """Fewer confirmations than the threshold."""


class RoundFailed(SecureAggregationError):
    """The round ends without a sum. ``positions`` are the sites that caused it, as what they sent shows."""

    def __init__(self, message: str, positions: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.positions = positions


class BadDealer(RoundFailed):
    """A secret, put together from shares, is not what its dealer committed to."""


class BadHolder(RoundFailed):
    """A share is not the one that its holder accepted."""


class BadEscrow(RoundFailed):
    """An escrow does not hold what its site committed to."""


class SentinelDiffers(RoundFailed):
    """The sum does not count its own survivors: masks were left in it."""
