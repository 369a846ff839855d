"""The protocol's messages and their one form as bytes.

Each message has a fixed layout whose lengths follow from the cohort and the number of rounds, which both sides know;
whatever else arrives is `Malformed`. Positions are strictly increasing. docs/secure-aggregation.md says in prose what
each message means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from privacy.secure_aggregation.context import HASH_BYTES, SIGNATURE_BYTES
from privacy.secure_aggregation.encoding import Reader, Writer, check_increasing
from privacy.secure_aggregation.masks import Vector
from privacy.secure_aggregation.refusals import Malformed
from privacy.secure_aggregation.sealing import PUBLIC_KEY_BYTES, SEALED_BYTES, TAG_BYTES
from privacy.secure_aggregation.shamir import ELEMENT_BYTES

MAX_SITES = 1000
CONTRIBUTION_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvertiseRequest:
    """Server to site: a new batch with these sites, beginning at this round."""

    number: int
    first_round: int
    roster_hash: bytes
    cohort: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """As bytes."""
        writer = Writer()
        writer.number(self.number)
        writer.number(self.first_round)
        writer.fixed(self.roster_hash)
        writer.number(len(self.cohort))
        for name in self.cohort:
            writer.name(name)
        return writer.result()

    @classmethod
    def from_bytes(cls, message: bytes) -> Self:
        """Raises Malformed."""
        reader = Reader(message, "advertise request")
        number, first_round = reader.number(least=1), reader.number(least=1)
        roster_hash = reader.fixed(HASH_BYTES)
        cohort = tuple(reader.name() for _ in range(reader.number(most=MAX_SITES)))
        reader.end()
        return cls(number=number, first_round=first_round, roster_hash=roster_hash, cohort=cohort)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """Site to server, and on to all sites: a fresh sealing key, signed."""

    public_key: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """As bytes."""
        return self.public_key + self.signature

    @classmethod
    def from_bytes(cls, message: bytes) -> Self:
        """Raises Malformed."""
        reader = Reader(message, "advertisement")
        found = cls.read(reader)
        reader.end()
        return found

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """The next advertisement of a longer message."""
        return cls(public_key=reader.fixed(PUBLIC_KEY_BYTES), signature=reader.fixed(SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareRequest:
    """Server to site: the advertisements of all sites that go on, by position."""

    advertisements: dict[int, Advertisement]

    def to_bytes(self) -> bytes:
        """As bytes."""
        writer = Writer()
        writer.number(len(self.advertisements))
        for position, advertisement in self.advertisements.items():
            writer.number(position)
            writer.fixed(advertisement.to_bytes())
        return writer.result()

    @classmethod
    def from_bytes(cls, message: bytes, *, num_sites: int) -> Self:
        """Raises Malformed."""
        reader = Reader(message, "share request")
        entries = [
            (reader.number(), Advertisement.read(reader)) for _ in range(reader.number(most=num_sites))
        ]
        reader.end()
        check_increasing([position for position, _ in entries], num_sites, "share request")
        return cls(advertisements=dict(entries))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealing:
    """What one dealer deals to one holder.

    Attributes:
        sealed: contribution and shares, sealed for the holder; empty for the dealer itself.
        commitments: to the holder's share of b and of e, for each round in order, 32 bytes each.
    """

    sealed: bytes
    commitments: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareReply:
    """Site to server: its dealings, in the order of the members, and commitments to its secrets b and e."""

    dealings: dict[int, Dealing]
    secret_commitments: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """As bytes."""
        writer = Writer()
        for dealing in self.dealings.values():
            writer.fixed(dealing.sealed)
            writer.fixed(dealing.commitments)
        writer.fixed(self.secret_commitments)
        writer.fixed(self.signature)
        return writer.result()

    @classmethod
    def from_bytes(cls, message: bytes, *, dealer: int, members: Sequence[int], num_rounds: int) -> Self:
        """Raises Malformed."""
        reader = Reader(message, "share reply")
        dealings = {}
        for member in members:
            sealed = b"" if member == dealer else reader.fixed(bundle_bytes(num_rounds))
            dealings[member] = Dealing(sealed=sealed, commitments=reader.fixed(2 * HASH_BYTES * num_rounds))
        secret_commitments = reader.fixed(2 * HASH_BYTES * num_rounds)
        signature = reader.fixed(SIGNATURE_BYTES)
        reader.end()
        return cls(dealings=dealings, secret_commitments=secret_commitments, signature=signature)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedDealing:
    """A dealing as its holder gets it, with what the holder needs to check the dealer's signature.

    ``digests`` are those of all of the dealer's dealings, in the order of the members.
    """

    dealing: Dealing
    digests: tuple[bytes, ...]
    secrets_digest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EscrowRequest:
    """Server to site: the dealings addressed to it, by dealer."""

    received: dict[int, ReceivedDealing]

    def to_bytes(self) -> bytes:
        """As bytes."""
        writer = Writer()
        writer.number(len(self.received))
        for dealer, entry in self.received.items():
            writer.number(dealer)
            writer.fixed(entry.dealing.sealed)
            writer.fixed(entry.dealing.commitments)
            for one in entry.digests:
                writer.fixed(one)
            writer.fixed(entry.secrets_digest)
            writer.fixed(entry.signature)
        return writer.result()

    @classmethod
    def from_bytes(cls, message: bytes, *, num_members: int, num_sites: int, num_rounds: int) -> Self:
        """Raises Malformed."""
        reader = Reader(message, "escrow request")
        received = []
        for _ in range(reader.number(most=num_members)):
            dealer = reader.number()
            dealing = Dealing(
                sealed=reader.fixed(bundle_bytes(num_rounds)),
                commitments=reader.fixed(2 * HASH_BYTES * num_rounds),
            )
            digests = tuple(reader.fixed(HASH_BYTES) for _ in range(num_members))
            entry = ReceivedDealing(
                dealing=dealing,
                digests=digests,
                secrets_digest=reader.fixed(HASH_BYTES),
                signature=reader.fixed(SIGNATURE_BYTES),
            )
            received.append((dealer, entry))
        reader.end()
        check_increasing([dealer for dealer, _ in received], num_sites, "escrow request")
        return cls(received=dict(received))


@dataclass(frozen=True, slots=True, kw_only=True)
class EscrowReply:
    """Site to server: whose bundles it accepted, and for each round its pair seeds, sealed under e.

    A member that is not in ``accepted`` is complained of: its bundle was missing, or not what it signed.

    Attributes:
        accepted: positions, increasing, without the site itself.
        escrows: one for each round: the pair seeds of all members in order, zero where there is none.
        commitments: to those seeds, for each round and member in order, 32 bytes each, zero where there is none.
    """

    accepted: tuple[int, ...]
    escrows: tuple[bytes, ...]
    commitments: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """As bytes."""
        writer = Writer()
        writer.number(len(self.accepted))
        for position in self.accepted:
            writer.number(position)
        for escrow in self.escrows:
            writer.fixed(escrow)
        writer.fixed(self.commitments)
        writer.fixed(self.signature)
        return writer.result()

    @classmethod
    def from_bytes(cls, message: bytes, *, members: Sequence[int], num_rounds: int) -> Self:
        """Raises Malformed."""
        reader = Reader(message, "escrow reply")
        accepted = tuple(reader.number() for _ in range(reader.number(most=len(members))))
        escrows = tuple(reader.fixed(escrow_bytes(len(members))) for _ in range(num_rounds))
        commitments = reader.fixed(HASH_BYTES * len(members) * num_rounds)
        signature = reader.fixed(SIGNATURE_BYTES)
        reader.end()
        check_increasing(accepted, MAX_SITES, "escrow reply")
        if not set(accepted) <= set(members):
            raise Malformed("escrow reply: accepts a site that advertised nothing")
        return cls(accepted=accepted, escrows=escrows, commitments=commitments, signature=signature)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedVector:
    """Site to server: the masked vector, the sentinel at its end, and a signature over its hash."""

    signature: bytes
    vector: Vector

    def to_bytes(self) -> bytes:
        """As bytes: the signature, then little-endian uint32."""
        return self.signature + self.vector.astype("<u4", copy=False).tobytes()

    @classmethod
    def from_bytes(cls, message: bytes, *, length: int) -> Self:
        """*length* is that of the vector without its sentinel. Raises Malformed."""
        if len(message) != SIGNATURE_BYTES + 4 * (length + 1):
            raise Malformed(
                f"masked vector: {len(message)} bytes, {SIGNATURE_BYTES + 4 * (length + 1)} expected"
            )
        vector = np.frombuffer(message, dtype="<u4", offset=SIGNATURE_BYTES)
        return cls(signature=message[:SIGNATURE_BYTES], vector=vector)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivor:
    """The hash of one survivor's masked vector, and that site's own signature over it."""

    vector_hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmRequest:
    """Server to site: whose vectors are in the sum of the round."""

    survivors: dict[int, Survivor]

    def to_bytes(self) -> bytes:
        """As bytes."""
        writer = Writer()
        writer.number(len(self.survivors))
        for position, survivor in self.survivors.items():
            writer.number(position)
            writer.fixed(survivor.vector_hash)
            writer.fixed(survivor.signature)
        return writer.result()

    @classmethod
    def from_bytes(cls, message: bytes, *, num_sites: int) -> Self:
        """Raises Malformed."""
        reader = Reader(message, "confirm request")
        survivors = [
            (
                reader.number(),
                Survivor(vector_hash=reader.fixed(HASH_BYTES), signature=reader.fixed(SIGNATURE_BYTES)),
            )
            for _ in range(reader.number(most=num_sites))
        ]
        reader.end()
        check_increasing([position for position, _ in survivors], num_sites, "confirm request")
        return cls(survivors=dict(survivors))


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """Site to server, and on to all survivors: it was told these survivors, and no others for this round.

    ``journal_head``, 32 bytes, stands for the site's journal at that moment; peers keep it as a receipt.
    """

    journal_head: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """As bytes."""
        return self.journal_head + self.signature

    @classmethod
    def from_bytes(cls, message: bytes) -> Self:
        """Raises Malformed."""
        reader = Reader(message, "confirmation")
        found = cls.read(reader)
        reader.end()
        return found

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """The next confirmation of a longer message."""
        return cls(journal_head=reader.fixed(HASH_BYTES), signature=reader.fixed(SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmaskRequest:
    """Server to site: confirmations of the survivors that the site confirmed, by position."""

    confirmations: dict[int, Confirmation]

    def to_bytes(self) -> bytes:
        """As bytes."""
        writer = Writer()
        writer.number(len(self.confirmations))
        for position, confirmation in self.confirmations.items():
            writer.number(position)
            writer.fixed(confirmation.to_bytes())
        return writer.result()

    @classmethod
    def from_bytes(cls, message: bytes, *, num_sites: int) -> Self:
        """Raises Malformed."""
        reader = Reader(message, "unmask request")
        confirmations = [
            (reader.number(), Confirmation.read(reader)) for _ in range(reader.number(most=num_sites))
        ]
        reader.end()
        check_increasing([position for position, _ in confirmations], num_sites, "unmask request")
        return cls(confirmations=dict(confirmations))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmaskReply:
    """Site to server: one share for each site of the round set, in order: of b if it survived, else of e."""

    shares: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """As bytes."""
        return b"".join(self.shares)

    @classmethod
    def from_bytes(cls, message: bytes, *, num_shares: int) -> Self:
        """Raises Malformed."""
        reader = Reader(message, "unmask reply")
        shares = tuple(reader.fixed(ELEMENT_BYTES) for _ in range(num_shares))
        reader.end()
        return cls(shares=shares)


def bundle_bytes(num_rounds: int) -> int:
    """Length of a sealed bundle: the contribution, and a share of b and of e for each round."""
    return CONTRIBUTION_BYTES + 2 * ELEMENT_BYTES * num_rounds + SEALED_BYTES


def escrow_bytes(num_members: int) -> int:
    """Length of one round's sealed escrow."""
    return ELEMENT_BYTES * num_members + TAG_BYTES
