"""Receipts: what a site signed in a round, as others keep it.

A confirmation is signed over the head of the signer's journal at that moment (`privacy.journal`). Whoever keeps it can
show later that the signer's journal held that head. A site whose journal was put back to an older copy, or was written
anew, has a journal without it, and is found out by any receipt from after the point where the two differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from privacy.secure_aggregation import statements
from privacy.secure_aggregation.context import HASH_BYTES, SIGNATURE_BYTES
from privacy.secure_aggregation.encoding import Reader, Writer, statement
from privacy.secure_aggregation.refusals import Malformed


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One site's confirmation with all that its signature covers.

    Attributes:
        site: name of the signer; a claim of whoever kept the receipt, as are *run_id* and *round*. What the signature
            proves is that the owner of the key had *journal_head* in its journal in the round of *round_ctx*.
        position: of the signer in the batch's cohort.
        round_ctx: digest of the round, 32 bytes.
        survivors: digest of the survivors that it confirmed, 32 bytes.
        journal_head: 32 bytes.
        signature: 64 bytes.
    """

    site: str
    run_id: str
    round: int
    position: int
    round_ctx: bytes
    survivors: bytes
    journal_head: bytes
    signature: bytes

    def is_signed(self, public_key: bytes) -> bool:
        """Whether the key, 32 bytes, signed this confirmation."""
        signed = statement(
            statements.CONFIRMATION, self.position, self.round_ctx, self.survivors, self.journal_head
        )
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(self.signature, signed)
        except InvalidSignature:
            return False
        return True

    def to_bytes(self) -> bytes:
        """As bytes."""
        writer = Writer()
        writer.name(self.site)
        writer.name(self.run_id)
        writer.number(self.round)
        writer.number(self.position)
        for part in (self.round_ctx, self.survivors, self.journal_head, self.signature):
            writer.fixed(part)
        return writer.result()

    @classmethod
    def from_bytes(cls, message: bytes) -> "Receipt":
        """Raises Malformed."""
        reader = Reader(message, "receipt")
        found = cls(
            site=reader.name(),
            run_id=reader.name(),
            round=reader.number(least=1),
            position=reader.number(),
            round_ctx=reader.fixed(HASH_BYTES),
            survivors=reader.fixed(HASH_BYTES),
            journal_head=reader.fixed(HASH_BYTES),
            signature=reader.fixed(SIGNATURE_BYTES),
        )
        reader.end()
        return found

    def to_json(self) -> dict[str, str | int]:
        """For journals and files."""
        return {
            "site": self.site,
            "run_id": self.run_id,
            "round": self.round,
            "position": self.position,
            "round_ctx": self.round_ctx.hex(),
            "survivors": self.survivors.hex(),
            "journal_head": self.journal_head.hex(),
            "signature": self.signature.hex(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "Receipt":
        """Raises Malformed."""
        try:
            return cls(
                site=str(values["site"]),
                run_id=str(values["run_id"]),
                round=int(str(values["round"])),
                position=int(str(values["position"])),
                **{
                    name: bytes.fromhex(str(values[name]))
                    for name in ("round_ctx", "survivors", "journal_head", "signature")
                },
            )
        except (KeyError, ValueError) as error:
            raise Malformed("this is no receipt") from error
