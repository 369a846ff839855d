"""The encoding of messages: what is written can be read, anything else is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_models.messages import (
    Answer,
    Close,
    Evaluate,
    MessageError,
    Open,
    Refusal,
    Train,
    decode_reply,
    decode_request,
    encode,
)

HASH = "0123456789abcdef" * 4
run_ids = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
requests = st.one_of(
    st.builds(Open, run_id=run_ids, study_hash=st.just(HASH), manifest_hash=st.just(HASH)),
    st.builds(Train, run_id=run_ids, study_hash=st.just(HASH), round=st.integers(1, 10**6)),
    st.builds(Evaluate, run_id=run_ids, study_hash=st.just(HASH)),
    st.builds(Close, run_id=run_ids, study_hash=st.just(HASH)),
)


@given(requests, st.binary(max_size=64))
def test_a_request_reads_back_as_it_was_written(request, payload: bytes) -> None:
    assert decode_request(encode(request, payload)) == (request, payload)


@given(st.builds(Answer, run_id=run_ids, round=st.integers(0, 10**6)), st.binary(max_size=64))
def test_an_answer_reads_back_as_it_was_written(answer: Answer, payload: bytes) -> None:
    assert decode_reply(encode(answer, payload)) == (answer, payload)


@given(st.data())
def test_a_mutated_header_is_refused_or_says_something_else(data) -> None:
    message = encode(Train(run_id="run", study_hash=HASH, round=12), b"payload")
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
        decode_request(b"CLG1" + (2**31).to_bytes(4, "big") + b"{}")
