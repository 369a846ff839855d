"""What sites sign and derive keys from, in one place for both halves: site and server must agree on every byte."""

from collections.abc import Mapping, Sequence

from privacy.secure_aggregation.context import BatchContext
from privacy.secure_aggregation.encoding import digest
from privacy.secure_aggregation.masks import derive
from privacy.secure_aggregation.messages import Advertisement, Dealing, EscrowReply, Survivor

ADVERTISEMENT = "advertisement"
DEALINGS = "dealings"
ESCROW = "escrow"
VECTOR = "vector"
CONFIRMATION = "confirmation"

SELF_SHARE, ESCROW_SHARE = "share of b", "share of e"
SELF_SECRET, ESCROW_SECRET = "secret b", "secret e"
PAIR_SEED = "pair seed"


def full_context(context: BatchContext, advertisements: Mapping[int, Advertisement]) -> bytes:
    """ctx from the share step on: with T1, the hash of all signed advertisements."""
    entries = tuple(
        (position, entry.public_key, entry.signature) for position, entry in advertisements.items()
    )
    return digest("context with advertisements", context.digest, digest("advertisements", entries))


def bundle_info(ctx: bytes, *, dealer: int, holder: int) -> bytes:
    """The HPKE info of a bundle: it opens in this batch only, as from this dealer to this holder."""
    return digest("bundle", ctx, dealer, holder)


def dealing_digest(dealing: Dealing) -> bytes:
    """What the dealer signs of one dealing."""
    return digest("dealing", dealing.sealed, dealing.commitments)


def secrets_digest(secret_commitments: bytes) -> bytes:
    """What the dealer signs of the commitments to its secrets."""
    return digest("secret commitments", secret_commitments)


def pair_seed(contributions: tuple[bytes, bytes], ctx: bytes, *, low: int, high: int, number: int) -> bytes:
    """Seed of a pair for one round, from both contributions in the order of the positions."""
    return derive(b"".join(contributions), "pair seed", ctx, low, high, number)


def escrow_key(secret: bytes, ctx: bytes, *, position: int, number: int) -> bytes:
    """Key under which a site's pair seeds of one round are sealed."""
    return derive(secret, "escrow key", ctx, position, number)


def escrow_digest(reply: EscrowReply) -> bytes:
    """What the site signs of its escrow reply."""
    return digest("escrow reply", reply.accepted, reply.escrows, reply.commitments)


def round_digest(
    ctx: bytes, *, number: int, request_hash: bytes, round_set: Sequence[int], length: int
) -> bytes:
    """All that a round is about: it stands in each of its signatures and mask keys."""
    return digest("round", ctx, number, request_hash, tuple(round_set), length)


def self_mask_key(seed: bytes, round_ctx: bytes, *, position: int) -> bytes:
    """Key of a site's self mask."""
    return derive(seed, "self mask", round_ctx, position)


def pair_mask_key(seed: bytes, round_ctx: bytes, *, low: int, high: int) -> bytes:
    """Key of the mask that the site at *low* adds and the one at *high* subtracts."""
    return derive(seed, "pair mask", round_ctx, low, high)


def vector_hash(masked: bytes) -> bytes:
    """Hash of a masked vector's bytes."""
    return digest("masked vector", masked)


def survivors_digest(survivors: Mapping[int, Survivor]) -> bytes:
    """What a confirmation is about: who survived, with which vector."""
    return digest("survivors", tuple((position, entry.vector_hash) for position, entry in survivors.items()))
