"""The encoding of messages: what is written can be read, anything else is refused."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_models.messages import (
    MAGIC,
    Advertise,
    Answer,
    Close,
    Confirm,
    Escrow,
    Evaluate,
    MessageError,
    Open,
    Refusal,
    Request,
    Share,
    Train,
    Unmask,
    decode_reply,
    decode_request,
    encode,
)

HASH = "0123456789abcdef" * 4
run_ids = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
hashes = st.just(HASH)
rounds = st.integers(1, 2**31 - 1)
round_sets = st.lists(st.integers(0, 999), unique=True, max_size=8).map(lambda chosen: tuple(sorted(chosen)))
requests = st.one_of(
    st.builds(Open, run_id=run_ids, study_hash=hashes, manifest_hash=hashes, roster_hash=hashes),
    *(st.builds(kind, run_id=run_ids, study_hash=hashes) for kind in (Advertise, Share, Escrow, Close)),
    *(
        st.builds(kind, run_id=run_ids, study_hash=hashes, round=rounds, round_set=round_sets)
        for kind in (Train, Evaluate)
    ),
    *(st.builds(kind, run_id=run_ids, study_hash=hashes, round=rounds) for kind in (Confirm, Unmask)),
)
kinds = st.sampled_from([kind.model_fields["kind"].default for kind in get_args(Request)])
answers = st.builds(Answer, to=kinds, run_id=run_ids, round=st.integers(0, 2**31 - 1))
reasons = st.sampled_from(get_args(Refusal.model_fields["reason"].annotation))
refusals = st.builds(Refusal, run_id=run_ids, reason=reasons)


@given(requests, st.binary(max_size=64))
def test_a_request_reads_back_as_it_was_written(request, payload: bytes) -> None:
    assert decode_request(encode(request, payload)) == (request, payload)


@given(st.one_of(answers, refusals), st.binary(max_size=64))
def test_a_reply_reads_back_as_it_was_written(reply: Answer | Refusal, payload: bytes) -> None:
    assert decode_reply(encode(reply, payload)) == (reply, payload)


def test_every_request_has_its_answer_and_no_other_kind_can_be_answered_to() -> None:
    asked = {kind.model_fields["kind"].default for kind in get_args(Request)}
    assert set(get_args(Answer.model_fields["to"].annotation)) == asked
    assert asked == {
        *("open", "advertise", "share", "escrow", "train", "evaluate", "confirm", "unmask", "close")
    }


def test_the_bytes_of_a_message_are_the_same_in_every_version() -> None:
    """A golden value: if it changes without MAGIC, peers of two versions misunderstand each other."""
    message = encode(Train(run_id="run", study_hash=HASH, round=2, round_set=(0, 2)), b"model")
    text = (
        f'{{"kind":"train","reductions":0,"round":2,"round_set":[0,2],"run_id":"run","study_hash":"{HASH}"}}'
    ).encode()
    assert message == b"CLG3" + len(text).to_bytes(4, "big") + text + b"model"


@pytest.mark.parametrize("magic", [b"CLG1", b"CLG2", b"clg3"])
def test_a_message_of_another_version_is_refused(magic: bytes) -> None:
    message = encode(Close(run_id="run", study_hash=HASH))
    assert message[:4] == MAGIC
    with pytest.raises(MessageError, match="another version"):
        decode_request(magic + message[4:])


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("train", '"round":1'),
        ("train", '"round":0,"round_set":[0,1]'),
        ("train", '"round":2147483648,"round_set":[0,1]'),
        ("train", '"round":1,"round_set":[0,1.5]'),
        ("train", '"round":1,"round_set":["0"]'),
        ("train", '"round":1,"round_set":[true,1]'),
        ("train", '"round":1,"round_set":"01"'),
        ("train", f'"round":1,"round_set":{list(range(1001))}'.replace(" ", "")),
        ("evaluate", '"round_set":[0,1]'),
        ("confirm", '"round":"1"'),
        ("confirm", '"round":1,"round_set":[0,1]'),
        ("unmask", '"round":0'),
        ("advertise", '"round":1'),
        ("trust", '"round":1'),
    ],
)
def test_a_header_with_a_field_too_few_too_many_or_wrong_is_refused(kind: str, values: str) -> None:
    text = f'{{"kind":"{kind}",{values},"run_id":"run","study_hash":"{HASH}"}}'.encode()
    with pytest.raises(MessageError, match="not one of this version"):
        decode_request(MAGIC + len(text).to_bytes(4, "big") + text)


@given(st.data())
def test_a_mutated_header_is_refused_or_says_something_else(data) -> None:
    message = encode(Train(run_id="run", study_hash=HASH, round=12, round_set=(0, 2, 11)), b"payload")
    position = data.draw(st.integers(0, len(message) - len(b"payload") - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != message[position]))
    mutated = message[:position] + bytes([byte]) + message[position + 1 :]
    try:
        request, payload = decode_request(mutated)
    except MessageError:
        return
    assert encode(request, payload) == mutated


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(message: bytes) -> None:
    with pytest.raises(MessageError):
        decode_request(message)


def test_a_request_is_no_reply_and_a_reply_no_request() -> None:
    with pytest.raises(MessageError):
        decode_reply(encode(Close(run_id="run", study_hash=HASH)))
    with pytest.raises(MessageError):
        decode_request(encode(Refusal(run_id="run", reason="data")))


def test_a_header_with_an_unknown_field_is_refused() -> None:
    message = encode(Close(run_id="run", study_hash=HASH))
    text = message[8:].replace(b'{"kind"', b'{"extra":1,"kind"')
    with pytest.raises(MessageError, match="not one of this version"):
        decode_request(message[:4] + len(text).to_bytes(4, "big") + text)


def test_a_header_that_claims_more_bytes_than_there_are_is_refused() -> None:
    with pytest.raises(MessageError, match="claims"):
        decode_request(MAGIC + (2**31).to_bytes(4, "big") + b"{}")
