"""A masked vector looks uniform whatever is under it, and no two masks are the same.

The statistical tests have a chance of a false alarm below 1e-8 each, by a bound that holds for every distribution of
uniform bytes, and each is shown to fail where the mask is left off.
"""

import hashlib
import math
from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from secure_sites import REQUEST_HASH, Consortium, make_terms

from privacy.secure_aggregation import statements
from privacy.secure_aggregation.masks import BLOCK_ENTRIES, Vector, add_mask, derive, subtract_mask
from privacy.secure_aggregation.server_setup import Batch

ALARM = 1e-8
LENGTH = 1 << 15
INPUTS = {
    "zeros": np.zeros(LENGTH, dtype=np.uint32),
    "the largest value": np.full(LENGTH, 2**32 - 1, dtype=np.uint32),
    "a ramp": np.arange(LENGTH, dtype=np.uint32),
    "one bit": np.where(np.arange(LENGTH) % 2, 2**31, 0).astype(np.uint32),
    "small noise around zero": np.random.default_rng(0)
    .normal(0, 1000, LENGTH)
    .astype(np.int32)
    .view(np.uint32),
}


def looks_uniform(vector: Vector) -> bool:
    """Chi-square over byte values, and the balance of bits.

    Source of the bounds: Laurent and Massart (2000), lemma 1, for chi-square with 255 degrees of freedom; Hoeffding
    for the number of ones.
    """
    raw = np.frombuffer(vector.astype("<u4").tobytes(), dtype=np.uint8)
    expected = raw.size / 256
    chi_square = float(((np.bincount(raw, minlength=256) - expected) ** 2 / expected).sum())
    x = math.log(1 / ALARM)
    ones, bits = int(np.unpackbits(raw).sum()), 8 * raw.size
    return chi_square <= 255 + 2 * math.sqrt(255 * x) + 2 * x and abs(ones - bits / 2) <= math.sqrt(
        bits * math.log(2 / ALARM) / 2
    )


def set_up(num_sites: int = 3) -> tuple[Consortium, Batch]:
    consortium = Consortium(terms=make_terms(num_sites, threshold=3), num_sites=num_sites)
    return consortium, consortium.set_up()


@pytest.mark.parametrize("name", INPUTS)
def test_a_masked_vector_looks_uniform_and_the_same_vector_without_masks_does_not(name: str) -> None:
    consortium, batch = set_up()
    about = consortium.about(batch, length=LENGTH)
    sent = [consortium.upload(site, about, REQUEST_HASH, INPUTS[name]).vector[:-1] for site in range(3)]
    for vector in sent:
        assert looks_uniform(vector)
    for one, other in combinations(sent, 2):
        assert looks_uniform(one - other)
        assert looks_uniform(one + other)
    assert not looks_uniform(INPUTS[name])


@pytest.mark.parametrize("left_on", ["self", "pair"])
def test_either_mask_alone_looks_uniform(left_on: str) -> None:
    """The self mask is what stays where pair seeds are opened, the pair masks where b is."""
    consortium, batch = set_up()
    about = consortium.about(batch, length=LENGTH)
    consortium.begin_of(0, about, REQUEST_HASH)
    secrets = consortium.forked().rounds[0].secrets
    vector = consortium.mask_of(0, INPUTS["zeros"]).vector.astype(np.uint32)
    if left_on == "pair":
        subtract_mask(vector, statements.self_mask_key(secrets.self_seed.value, about.round_ctx, position=0))
    else:
        for peer in (1, 2):
            seed = secrets.pair_seeds[peer].value
            subtract_mask(vector, statements.pair_mask_key(seed, about.round_ctx, low=0, high=peer))
    assert looks_uniform(vector[:-1])


def test_masks_of_different_rounds_requests_round_sets_lengths_and_sites_are_all_different() -> None:
    consortium, batch = set_up(4)
    starts = []
    for number in (1, 2):
        for request in (b"one", b"another"):
            for round_set in ((0, 1, 2), (0, 1, 3), (0, 1, 2, 3)):
                for length in (8, 9):
                    request_hash = hashlib.sha256(request).digest()
                    twin = consortium.forked()
                    about = twin.about(
                        batch,
                        number=number,
                        request_hash=request_hash,
                        round_set=round_set,
                        length=length,
                    )
                    for site in round_set:
                        zeros = np.zeros(length, dtype=np.uint32)
                        starts.append(twin.upload(site, about, request_hash, zeros).vector[:8].tobytes())
    assert len(starts) == 2 * 2 * 2 * (3 + 3 + 4)
    assert len(set(starts)) == len(starts)


def test_keys_of_all_masks_of_a_batch_are_different_and_both_ends_of_a_pair_have_the_same() -> None:
    consortium, batch = set_up(4)
    keys = []
    for number in (1, 2):
        about = consortium.about(batch, number=number)
        for site in range(4):
            secrets = consortium.states[site].rounds[number]
            keys.append(statements.self_mask_key(secrets.self_seed.value, about.round_ctx, position=site))
            for peer in range(site + 1, 4):
                other = consortium.states[peer].rounds[number].pair_seeds[site].value
                seed = secrets.pair_seeds[peer].value
                assert seed == other
                keys.append(statements.pair_mask_key(seed, about.round_ctx, low=site, high=peer))
    assert len(set(keys)) == len(keys) == 2 * (4 + 6)


def stream(key: bytes, length: int) -> Vector:
    """The whole mask in one go."""
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(4 * length)), dtype="<u4").astype(np.uint32)


@pytest.mark.parametrize(
    "length",
    [0, 1, 3, 4, 5, BLOCK_ENTRIES - 1, BLOCK_ENTRIES, BLOCK_ENTRIES + 1, 2 * BLOCK_ENTRIES + 3],
)
def test_a_mask_in_blocks_equals_the_stream_in_one_go_and_is_taken_off_again(length: int) -> None:
    key = derive(bytes(32), "a test", length)
    vector = np.arange(length, dtype=np.uint32) * np.uint32(2654435761)
    plain = vector.copy()
    add_mask(vector, key)
    assert np.array_equal(vector, plain + stream(key, length))
    subtract_mask(vector, key)
    assert np.array_equal(vector, plain)
    subtract_mask(vector, key)
    assert np.array_equal(vector, plain - stream(key, length))


def test_a_mask_is_put_on_one_row_of_uint32_only() -> None:
    for wrong in (np.zeros(4, np.int32), np.zeros(4, np.float32), np.zeros((2, 2), np.uint32)):
        before = wrong.copy()
        with pytest.raises(ValueError, match="one row of uint32"):
            add_mask(wrong, bytes(32))
        assert np.array_equal(wrong, before)


def test_masking_leaves_the_sites_own_vector_as_it_was() -> None:
    consortium, batch = set_up()
    vector = np.arange(5, dtype=np.uint32)
    consortium.upload(0, consortium.about(batch), REQUEST_HASH, vector)
    assert np.array_equal(vector, np.arange(5))
