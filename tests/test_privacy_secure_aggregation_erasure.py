"""What a step must forget is gone from every state when its reply is there, and no secret shows or is written."""

import copy
import pickle
from dataclasses import replace

import pytest
from secure_sites import REQUEST_HASH, Consortium, make_terms, random_vectors, secrets_in

from privacy.secure_aggregation import server_setup
from privacy.secure_aggregation.refusals import SecureAggregationError
from privacy.secure_aggregation.sealing import SealingKey
from privacy.secure_aggregation.secret import Secret
from privacy.secure_aggregation.server_setup import Batch

TERMS = make_terms(3, threshold=2, rounds_per_batch=3)


def ready() -> tuple[Consortium, Batch]:
    consortium = Consortium(terms=TERMS, num_sites=3)
    return consortium, consortium.set_up()


def left(state: object) -> set[str]:
    return {path for path, value in secrets_in(state) if value is not None}


def gone(state: object) -> set[str]:
    return {path for path, value in secrets_in(state) if value is None}


def test_sharing_erases_nothing_that_the_next_step_needs() -> None:
    consortium = Consortium(terms=TERMS, num_sites=3)
    advertising = consortium.advertise(consortium.context())
    assert left(consortium.states[0]) == {".key"}
    consortium.share(advertising)
    assert not gone(consortium.states[0])
    assert len(left(consortium.states[0])) == 1 + 2 + 4 * 3


def test_after_escrow_the_sealing_key_the_contributions_and_every_e_are_gone() -> None:
    consortium = Consortium(terms=TERMS, num_sites=3)
    advertising = consortium.advertise(consortium.context())
    advertised = dict(consortium.states)
    shares = consortium.share(advertising)
    shared = dict(consortium.states)
    consortium.escrow(advertising, shares)
    for site in range(3):
        peers = {0, 1, 2} - {site}
        assert gone(shared[site]) == {
            ".key",
            *(f".contributions[{peer}]" for peer in peers),
            *(f".own[{number}].escrow" for number in (1, 2, 3)),
        }
        assert gone(advertised[site]) == {".key"}
        assert not gone(consortium.states[site])
        assert not any("contributions" in path or "key" in path for path in left(consortium.states[site]))
        assert left(consortium.states[site]) == {
            path
            for number in (1, 2, 3)
            for path in (
                f".rounds[{number}].self_seed",
                *(f".rounds[{number}].pair_seeds[{peer}]" for peer in peers),
                *(f".rounds[{number}].self_shares[{dealer}]" for dealer in range(3)),
                *(f".rounds[{number}].escrow_shares[{dealer}]" for dealer in range(3)),
            )
        }


def test_once_the_vector_is_masked_what_masks_were_made_of_is_gone_and_the_shares_stay() -> None:
    consortium, batch = ready()
    consortium.upload(0, consortium.about(batch), REQUEST_HASH, random_vectors(3, 5)[0])
    secrets = consortium.rounds[0].begun.secrets
    assert gone(secrets) == {".self_seed", ".pair_seeds[1]", ".pair_seeds[2]"}
    assert len(left(secrets)) == 2 * 3
    assert not gone(consortium.states[0])
    assert set(consortium.states[0].rounds) == {2, 3}


def test_pair_seeds_of_sites_outside_the_round_set_are_gone_too() -> None:
    consortium, batch = ready()
    about = consortium.about(batch, round_set=(0, 1))
    consortium.upload(0, about, REQUEST_HASH, random_vectors(3, 5)[0])
    assert ".pair_seeds[2]" in gone(consortium.rounds[0].begun.secrets)


def test_confirming_erases_nothing_and_unmasking_everything_of_the_round() -> None:
    consortium, batch = ready()
    total = consortium.train(batch, random_vectors(3, 5))
    before = left(consortium.rounds[0])
    confirmations = consortium.confirm(total)
    assert left(consortium.rounds[0]) == before
    confirmed = consortium.rounds[0]
    consortium.unmask_of(0, total.unmask_request(confirmations))
    assert not left(confirmed)
    assert not list(secrets_in(consortium.rounds[0]))


def test_a_round_that_begins_erases_those_before_it_that_never_began() -> None:
    consortium, batch = ready()
    skipped = dict(consortium.states[0].rounds)
    consortium.begin_of(0, consortium.about(batch, number=3), REQUEST_HASH)
    assert not left(skipped[1])
    assert not left(skipped[2])
    assert not gone(skipped[3])
    assert not consortium.states[0].rounds


@pytest.mark.parametrize("stage", ["advertised", "shared", "ready", "begun", "uploaded", "confirmed"])
def test_erasing_any_state_leaves_no_secret_of_it(stage: str) -> None:
    """The run's end, or a new batch: what the shell calls then."""
    consortium = Consortium(terms=TERMS, num_sites=3)
    advertising = consortium.advertise(consortium.context())
    state = consortium.states[0]
    if stage != "advertised":
        shares = consortium.share(advertising)
        state = consortium.states[0]
    if stage not in ("advertised", "shared"):
        batch = server_setup.finish_setup(advertising, shares, consortium.escrow(advertising, shares))
        state = consortium.states[0]
    if stage in ("begun", "uploaded", "confirmed"):
        consortium.begin_of(0, consortium.about(batch), REQUEST_HASH)
        state = consortium.rounds[0]
    if stage in ("uploaded", "confirmed"):
        consortium.mask_of(0, random_vectors(3, 5)[0])
        state = consortium.rounds[0]
    if stage == "confirmed":
        consortium, batch = ready()
        consortium.confirm(consortium.train(batch, random_vectors(3, 5)))
        state = consortium.rounds[0]
    assert left(state)
    state.erase()
    assert not left(state)


def test_a_secret_shows_in_no_representation_and_goes_into_no_file() -> None:
    value = b"a patient's secret, 32 bytes lo."
    secret = Secret(value)
    shown = f"{secret!r} {secret!s} {[secret]} {secret}"
    assert "patient" not in shown
    assert "Secret(...)" in shown
    for write in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never written"):
            write(secret)
    assert secret.value == value
    secret.erase()
    assert secret.erased
    assert repr(secret) == "Secret(erased)"
    with pytest.raises(RuntimeError, match="erased") as error:
        _ = secret.value
    assert "patient" not in str(error.value)
    secret.erase()


def test_erasing_overwrites_the_bytes_in_place() -> None:
    secret = Secret(b"\x55" * 32)
    held = secret._bytes
    secret.erase()
    assert held == bytearray(32)


def test_an_erased_sealing_key_opens_nothing() -> None:
    key = SealingKey()
    key.erase()
    with pytest.raises(RuntimeError, match="erased"):
        key.open(bytes(1200), b"")


def test_no_state_shows_a_secret_in_its_representation() -> None:
    consortium = Consortium(terms=TERMS, num_sites=3)
    advertising = consortium.advertise(consortium.context())
    shares = consortium.share(advertising)
    states = [consortium.states[0]]
    batch = server_setup.finish_setup(advertising, shares, consortium.escrow(advertising, shares))
    states.append(consortium.states[0])
    consortium.begin_of(0, consortium.about(batch), REQUEST_HASH)
    states.append(consortium.rounds[0])
    for state in states:
        shown = repr(state)
        for path, value in secrets_in(state):
            if value is not None and path != ".key":
                assert value.hex() not in shown, path
                assert repr(value)[2:-1] not in shown, path
        assert consortium.identities[0].private_bytes_raw().hex() not in shown
        with pytest.raises(TypeError):
            pickle.dumps(state)


@pytest.mark.parametrize(("number", "round_set"), [(9, (0, 1, 2)), (3, (1, 2)), (3, (0, 1, 7)), (3, (0,))])
def test_a_refused_round_erases_nothing_of_those_before_it(number: int, round_set: tuple[int, ...]) -> None:
    consortium, batch = ready()
    about = replace(consortium.about(batch), number=number, round_set=round_set)
    with consortium.refusing(SecureAggregationError):
        consortium.begin_of(0, about, REQUEST_HASH)
