"""What the server makes of the parts that a site uploaded: never more than a forwarder would have sent."""

import json

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id
from hypothesis import given
from hypothesis import strategies as st

from client import forwarder
from server import flower_exchange
from server.flower_exchange import BODY, WHOLE_BYTES, ReplyRefused, body_of


def parts_of(record: ArrayRecord | ConfigRecord) -> dict[str, bytes]:
    """All objects of a record dictionary as Flower would upload them."""
    return {name: part.deflate() for name, part in get_all_nested_objects(RecordDict({BODY: record})).items()}


@pytest.mark.parametrize("size", [1, 1000, WHOLE_BYTES, WHOLE_BYTES + 1, 3 * WHOLE_BYTES + 17])
def test_what_a_forwarder_sends_is_what_the_server_reads(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    parts = parts_of(forwarder._record(body))
    assert body_of(parts, size) == body
    assert sum(map(len, parts.values())) < size + 2000  # bytes that travel beside the body


def test_both_sides_agree_on_the_record() -> None:
    assert forwarder.WHOLE_BYTES == flower_exchange.WHOLE_BYTES
    assert forwarder.BODY == flower_exchange.BODY


def _array(parts: dict[str, bytes]) -> tuple[str, bytes]:
    return next((name, part) for name, part in parts.items() if part.startswith(b"Array "))


def test_a_short_description_cannot_ask_for_a_huge_body() -> None:
    parts = parts_of(ArrayRecord({BODY: Array("uint8", (6 << 20,), "bytes", bytes(6 << 20))}))
    name, content = _array(parts)
    head, _, body = content.partition(b"\0")
    described = json.loads(body)
    described["arraychunk_ids"] = [0] * 100_000  # 5 MB each, half a terabyte together
    kind, children, _ = head.decode().split(" ")
    swollen = json.dumps(described).encode()
    del parts[name]
    content = f"{kind} {children} {len(swollen)}".encode() + b"\0" + swollen
    parts[get_object_id(content)] = content
    with pytest.raises(ReplyRefused, match="longer than allowed"):
        body_of(parts, 64 << 20)


def test_two_records_a_missing_chunk_or_another_kind_are_refused() -> None:
    large = parts_of(forwarder._record(bytes(WHOLE_BYTES + 1)))
    small = parts_of(forwarder._record(b"x"))
    without_chunk = {name: part for name, part in large.items() if not part.startswith(b"ArrayChunk")}
    text = parts_of(ConfigRecord({BODY: "text"}))
    other = parts_of(ConfigRecord({"other": b"x"}))
    for parts in ({**large, **small}, without_chunk, text, other, {}):
        with pytest.raises(ReplyRefused):
            body_of(parts, 64 << 20)


@given(
    st.lists(
        st.tuples(st.sampled_from(["Array", "ConfigRecord", "ArrayChunk", "x"]), st.binary()), max_size=3
    ),
    st.booleans(),
)
def test_anything_else_is_refused_with_the_one_error(contents: list[tuple[str, bytes]], headed: bool) -> None:
    parts = {
        str(number): (f"{kind}  {len(body)}".encode() + b"\0" if headed else kind.encode()) + body
        for number, (kind, body) in enumerate(contents)
    }
    with pytest.raises(ReplyRefused):
        body_of(parts, 1000)


def test_a_description_nested_without_end_is_refused() -> None:
    body = b'{"arraychunk_ids": ' + b"[" * 100_000
    with pytest.raises(ReplyRefused):
        body_of({"a": b"Array  " + str(len(body)).encode() + b"\0" + body}, 1000)
