"""Known answers: what sites derive, hash, split and mask is what it was, on every machine and after every change.

The expected values in secure_aggregation_vectors.json were written by `independent` below: HMAC and SHA-256 of the
standard library, one AES block at a time, plain evaluation of polynomials. Nothing of the product is used there.
"""

import hashlib
import hmac
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st
from secure_sites import Consortium, make_terms

from privacy.secure_aggregation import shamir, statements
from privacy.secure_aggregation.context import commitment
from privacy.secure_aggregation.encoding import digest, statement
from privacy.secure_aggregation.masks import BLOCK_ENTRIES, add_mask, derive
from privacy.secure_aggregation.messages import Survivor
from privacy.secure_aggregation.refusals import Malformed

PATH = Path(__file__).with_name("secure_aggregation_vectors.json")
SECRET, CTX = bytes(range(32)), bytes(range(32, 64))
CONTRIBUTIONS = (b"\x11" * 32, b"\x22" * 32)
FIELDS = (7, "Spital-é", b"\x00\xff", (), (1, (2, "x"), b""), 2**64 - 1)
COEFFICIENTS = (2**255 + 12345, 3, 2**256 - 190)
HOLDERS = (0, 1, 2, 4, 9)


# Independent of the product.


def encoded(*fields: object) -> bytes:
    """Type letter, eight bytes of value or length, content."""
    out = b""
    for entry in fields:
        if isinstance(entry, int):
            out += b"i" + entry.to_bytes(8, "big")
        elif isinstance(entry, tuple):
            out += b"t" + len(entry).to_bytes(8, "big") + encoded(*entry)
        else:
            raw = entry.encode() if isinstance(entry, str) else entry
            out += (b"s" if isinstance(entry, str) else b"b") + len(raw).to_bytes(8, "big") + raw
    return out


def labelled(label: str, *fields: object) -> bytes:
    return encoded(("collegium-secure-aggregation-1", label, *fields))


def sha256(label: str, *fields: object) -> bytes:
    return hashlib.sha256(labelled(label, *fields)).digest()


def hkdf(secret: bytes, info: bytes, *, salt: bytes = bytes(32), length: int = 32) -> bytes:
    """RFC 5869 with SHA-256; no salt is a salt of 32 zero bytes."""
    key = hmac.digest(salt, secret, "sha256")
    out, last = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        last = hmac.digest(key, last + info + bytes([counter]), "sha256")
        out += last
    return out[:length]


def words(key: bytes, first: int, count: int) -> list[int]:
    """Entries of a mask: the AES encryption of 0, 1, 2 … as big-endian counters, read as little-endian uint32."""
    encryptor = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    counters = range(first // 4, (first + count + 3) // 4)
    raw = b"".join(encryptor.update(counter.to_bytes(16, "big")) for counter in counters)
    start = 4 * (first % 4)
    return list(struct.unpack(f"<{count}I", raw[start : start + 4 * count]))


def polynomial(x: int) -> int:
    """Secret first."""
    return sum(one * x**power for power, one in enumerate(COEFFICIENTS)) % (2**256 - 189)


def independent() -> dict[str, object]:
    round_ctx = sha256("round", CTX, 12, bytes(32), (0, 2, 3), 100)
    mask_key = hkdf(SECRET, labelled("self mask", round_ctx, 3))
    return {
        "statement": labelled("a label", *FIELDS).hex(),
        "digest": sha256("a label", *FIELDS).hex(),
        "derive": hkdf(SECRET, labelled("a label", *FIELDS)).hex(),
        "round digest": round_ctx.hex(),
        "self mask key": mask_key.hex(),
        "pair mask key": hkdf(SECRET, labelled("pair mask", round_ctx, 1, 4)).hex(),
        "escrow key": hkdf(SECRET, labelled("escrow key", CTX, 2, 12)).hex(),
        "pair seed": hkdf(b"".join(CONTRIBUTIONS), labelled("pair seed", CTX, 1, 4, 12)).hex(),
        "commitment": sha256("commitment", "share of b", CTX, 12, 1, 4, SECRET).hex(),
        "bundle info": sha256("bundle", CTX, 1, 4).hex(),
        "vector hash": sha256("masked vector", SECRET).hex(),
        "survivors digest": sha256("survivors", ((0, SECRET), (3, CTX))).hex(),
        "mask, first words": words(mask_key, 0, 6),
        "mask, words around a block's end": words(mask_key, BLOCK_ENTRIES - 3, 6),
        "shares": [f"{polynomial(position + 1):064x}" for position in HOLDERS],
    }


@pytest.fixture(scope="module")
def known() -> dict[str, object]:
    return json.loads(PATH.read_text())["values"]


def test_the_file_of_known_answers_is_what_the_independent_computation_gives(known) -> None:
    assert known == independent()


# The product.


def test_statements_and_digests_are_the_known_ones(known) -> None:
    assert statement("a label", *FIELDS).hex() == known["statement"]
    assert digest("a label", *FIELDS).hex() == known["digest"]
    assert commitment("share of b", CTX, 12, 1, 4, SECRET).hex() == known["commitment"]
    assert statements.bundle_info(CTX, dealer=1, holder=4).hex() == known["bundle info"]
    assert statements.vector_hash(SECRET).hex() == known["vector hash"]
    survivors = {0: Survivor(vector_hash=SECRET, signature=b""), 3: Survivor(vector_hash=CTX, signature=b"x")}
    assert statements.survivors_digest(survivors).hex() == known["survivors digest"]


def test_derived_keys_are_the_known_ones(known) -> None:
    round_ctx = statements.round_digest(
        CTX, number=12, request_hash=bytes(32), round_set=(0, 2, 3), length=100
    )
    assert round_ctx.hex() == known["round digest"]
    assert derive(SECRET, "a label", *FIELDS).hex() == known["derive"]
    assert statements.self_mask_key(SECRET, round_ctx, position=3).hex() == known["self mask key"]
    assert statements.pair_mask_key(SECRET, round_ctx, low=1, high=4).hex() == known["pair mask key"]
    assert statements.escrow_key(SECRET, CTX, position=2, number=12).hex() == known["escrow key"]
    assert statements.pair_seed(CONTRIBUTIONS, CTX, low=1, high=4, number=12).hex() == known["pair seed"]


def test_the_mask_stream_is_the_known_one(known) -> None:
    vector = np.zeros(BLOCK_ENTRIES + 3, dtype=np.uint32)
    add_mask(vector, bytes.fromhex(known["self mask key"]))
    assert vector[:6].tolist() == known["mask, first words"]
    assert vector[-6:].tolist() == known["mask, words around a block's end"]


def test_shares_are_the_known_ones_and_any_three_of_them_give_the_secret(known) -> None:
    drawn = iter(shamir.element_bytes(one) for one in COEFFICIENTS[1:])
    shares = shamir.split(
        COEFFICIENTS[0], threshold=3, positions=HOLDERS, randomness=lambda length: next(drawn)
    )
    assert [shamir.element_bytes(one).hex() for one in shares] == known["shares"]
    for chosen in ((0, 1, 2), (2, 3, 4), (4, 0, 3)):
        coefficients = shamir.lagrange([HOLDERS[index] for index in chosen])
        assert shamir.combine(coefficients, [shares[index] for index in chosen]) == COEFFICIENTS[0]


@pytest.mark.parametrize(
    ("secret", "salt", "info", "length", "expected"),
    [
        (
            b"\x0b" * 22,
            bytes(range(13)),
            bytes(range(0xF0, 0xFA)),
            42,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            b"\x0b" * 22,
            b"",
            b"",
            42,
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
    ids=["RFC 5869 test case 1", "RFC 5869 test case 3"],
)
def test_both_key_derivations_give_the_answers_of_rfc_5869(
    secret: bytes, salt: bytes, info: bytes, length: int, expected: str
) -> None:
    assert hkdf(secret, info, salt=salt or bytes(32), length=length).hex() == expected
    product = HKDF(algorithm=SHA256(), length=length, salt=salt or None, info=info)
    assert product.derive(secret).hex() == expected


# Laws.

leaves = st.integers(0, 2**64 - 1) | st.text(max_size=4) | st.binary(max_size=4)
trees = st.lists(st.recursive(leaves, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6))


def typed(value: object) -> object:
    """The value with its types, so that (1,) and (True,) or "a" and b"a" are not taken for one another."""
    return tuple(map(typed, value)) if isinstance(value, tuple) else (type(value), value)


@pytest.mark.slow
@given(trees, trees)
def test_two_different_lists_of_fields_have_two_different_statements(one: list, other: list) -> None:
    same = typed(tuple(one)) == typed(tuple(other))
    assert (statement("a label", *one) == statement("a label", *other)) == same


def test_neighbouring_fields_cannot_pass_bytes_to_each_other() -> None:
    lists = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ("abc", ""),
        (b"ab", "c"),
        (("ab", "c"),),
        (("ab",), "c"),
        (),
    ]
    assert len({statement("a label", *fields) for fields in lists}) == len(lists)
    assert statement("a", "b") != statement("b", "a")


@given(
    st.integers(0, shamir.PRIME - 1),
    st.sets(st.integers(0, 30), min_size=1, max_size=7),
    st.randoms(use_true_random=False),
)
def test_any_threshold_of_shares_give_the_secret_and_one_fewer_gives_another_value(
    secret: int, positions: set[int], random
) -> None:
    holders = sorted(positions)
    threshold = random.randint(1, len(holders))
    shares = dict(
        zip(
            holders,
            shamir.split(secret, threshold=threshold, positions=holders, randomness=random.randbytes),
            strict=True,
        )
    )
    chosen = random.sample(holders, threshold)
    coefficients = shamir.lagrange(chosen)
    assert shamir.combine(coefficients, [shares[one] for one in chosen]) == secret
    if threshold > 1:
        fewer = chosen[1:]
        assert shamir.combine(shamir.lagrange(fewer), [shares[one] for one in fewer]) != secret


def test_with_one_share_fewer_than_the_threshold_every_secret_is_still_possible() -> None:
    """For given two shares of three, each secret has exactly one third share that fits: nothing is learned."""
    shares = shamir.split(5, threshold=3, positions=(0, 1, 2), randomness=lambda length: b"\x07" * length)
    a, b, c = shamir.lagrange((0, 1, 2))
    for secret in (0, 1, 5, shamir.PRIME - 1):
        third = (secret - a * shares[0] - b * shares[1]) * pow(c, -1, shamir.PRIME) % shamir.PRIME
        assert shamir.combine((a, b, c), (*shares[:2], third)) == secret


def test_bytes_that_are_no_element_are_refused_and_drawn_ones_are_drawn_again() -> None:
    for raw in (shamir.PRIME.to_bytes(32, "big"), b"\xff" * 32, bytes(31), bytes(33), b""):
        with pytest.raises(Malformed):
            shamir.read_element(raw)
    assert shamir.read_element((shamir.PRIME - 1).to_bytes(32, "big")) == shamir.PRIME - 1
    drawn = iter([b"\xff" * 32, shamir.PRIME.to_bytes(32, "big"), bytes(31) + b"\x09"])
    assert shamir.random_element(lambda length: next(drawn)) == 9


@pytest.mark.parametrize(("threshold", "positions"), [(0, (0, 1)), (3, (0, 1)), (2, (0, 0, 1)), (1, ())])
def test_a_threshold_that_does_not_fit_the_holders_is_refused(
    threshold: int, positions: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        shamir.split(1, threshold=threshold, positions=positions, randomness=bytes)


def test_a_holder_that_counts_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="counts once"):
        shamir.lagrange((1, 1))


def test_every_part_of_a_context_is_in_its_digest() -> None:
    """Two contexts that differ in one thing only have different digests."""
    base = Consortium(terms=make_terms(5, threshold=3, min_cohort=3), num_sites=4)
    context = base.context()
    federation, terms = context.federation, context.terms
    changed = {"": context.digest}
    for name, value in (("number", 2), ("first_round", 2), ("cohort", base.names[:3])):
        changed[name] = type(context)(**{**vars_of(context), name: value}).digest
    for name, value in (("study_hash", "6"), ("run_id", "run-2"), ("roster_hash", bytes(32))):
        changed[name] = with_federation(context, **{name: value})
    identities = {**federation.identities, "site-00": bytes(32)}
    changed["identities"] = with_federation(context, identities=identities)
    for name in ("num_sites_max", "threshold", "min_cohort", "num_colluding", "rounds_per_batch"):
        step = -1 if name == "min_cohort" else 1
        others = {entry: getattr(terms, entry) for entry in type(terms).__dataclass_fields__}
        others[name] += step
        changed[name] = with_federation(context, terms=type(terms)(**others))
    assert len(set(changed.values())) == len(changed) == 13


def vars_of(context) -> dict[str, object]:
    return {name: getattr(context, name) for name in type(context).__dataclass_fields__}


def with_federation(context, **changes) -> bytes:
    federation = context.federation
    values = {name: getattr(federation, name) for name in type(federation).__dataclass_fields__}
    return type(context)(
        **{**vars_of(context), "federation": type(federation)(**{**values, **changes})}
    ).digest


if __name__ == "__main__":
    how = "Written by `python tests/test_privacy_secure_aggregation_vectors.py`: its `independent`, without our code."
    PATH.write_text(json.dumps({"made": how, "values": independent()}, indent=2) + "\n")
