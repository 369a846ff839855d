"""What a batch is about. Its digest stands in every signature, sealed bundle and derived key of the batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.secure_aggregation.encoding import Field, digest, statement
from privacy.secure_aggregation.refusals import BadSignature, CohortRefused
from privacy.secure_aggregation.terms import Constants, Terms

SIGNATURE_BYTES = 64
HASH_BYTES = 32


class Identities(Protocol):
    """Whatever holds the sites' public keys: a signed roster."""

    @property
    def hash(self) -> bytes: ...  # noqa: D102
    @property
    def identities(self) -> Mapping[str, bytes]: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """What all sites of a run have in common before any batch.

    Attributes:
        study_hash: identity of the study.
        run_id: of the run.
        roster_hash: 32 bytes, of the roster that the site pinned.
        identities: name → Ed25519 public key, 32 bytes, of every site of that roster.
        terms: the study's constants.
    """

    study_hash: str
    run_id: str
    roster_hash: bytes
    identities: Mapping[str, bytes]
    terms: Terms

    @classmethod
    def of(cls, *, study_hash: str, run_id: str, roster: Identities, constants: Constants) -> "Federation":
        """The federation of a run: site and server make it from the same study and roster."""
        return cls(
            study_hash=study_hash,
            run_id=run_id,
            roster_hash=roster.hash,
            identities=roster.identities,
            terms=Terms.of(constants),
        )


@dataclass(frozen=True, kw_only=True)
class BatchContext:
    """One batch: the sites at its positions, and the rounds that it prepares.

    Args:
        federation: of the run.
        number: of the batch; strictly increasing in a run.
        first_round: number of its first round; rounds are counted over the whole run.
        cohort: names of the sites, strictly increasing: a site's position is its place in this list.
    """

    federation: Federation
    number: int
    first_round: int
    cohort: tuple[str, ...]

    def __post_init__(self) -> None:
        if any(first >= second for first, second in zip(self.cohort, self.cohort[1:], strict=False)):
            raise CohortRefused("the cohort's names are not strictly increasing")
        for name in self.cohort:
            if name not in self.federation.identities:
                raise CohortRefused(f'the cohort holds "{name[:80]}", who is not in the roster')
        self.federation.terms.check(len(self.cohort))

    @property
    def terms(self) -> Terms:
        """The study's constants."""
        return self.federation.terms

    @property
    def rounds(self) -> range:
        """Numbers of the batch's rounds."""
        return range(self.first_round, self.first_round + self.terms.rounds_per_batch)

    @cached_property
    def digest(self) -> bytes:
        """ctx before the advertisements are known, 32 bytes."""
        federation, terms = self.federation, self.terms
        return digest(
            "context",
            federation.study_hash,
            federation.run_id,
            federation.roster_hash,
            self.number,
            self.first_round,
            terms.rounds_per_batch,
            self.cohort,
            tuple(federation.identities[name] for name in self.cohort),
            terms.num_sites_max,
            terms.threshold,
            terms.min_cohort,
            terms.num_colluding,
        )

    def check_signature(
        self, signature: bytes, label: str, position: int, ctx: bytes, *fields: Field
    ) -> None:
        """Check that the site at *position* signed just this. Raises BadSignature."""
        key = Ed25519PublicKey.from_public_bytes(self.federation.identities[self.cohort[position]])
        try:
            key.verify(signature, statement(label, position, ctx, *fields))
        except InvalidSignature as error:
            raise BadSignature(
                f"{label} of {self.cohort[position]}: the signature is not theirs, or is about something else"
            ) from error


def sign(identity: Ed25519PrivateKey, label: str, position: int, ctx: bytes, *fields: Field) -> bytes:
    """Return the site's signature, 64 bytes, over the label, its position, the context and the fields."""
    return identity.sign(statement(label, position, ctx, *fields))


def commitment(  # noqa: PLR0917 - the order is that of the statement
    kind: str, ctx: bytes, number: int, owner: int, holder: int, value: bytes
) -> bytes:
    """Hash commitment: binding by collision resistance, hiding while the value's 256 bits are known to nobody else.

    Args:
        kind: of the value: a share or a secret of one kind, or a pair seed.
        ctx: of the batch.
        number: of the round.
        owner: position of the dealer, or the lower position of a pair.
        holder: position of the holder (the dealer's own for a secret), or the higher position of a pair.
        value: 32 bytes.
    """
    return digest("commitment", kind, ctx, number, owner, holder, value)
