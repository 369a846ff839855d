"""The multipart parser: the same events however the bytes are cut; hostile messages are refused within limits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.pacs_multipart import (
    Event,
    MultipartError,
    MultipartParser,
    PartBegins,
    PartData,
    PartEnds,
    PartTooLarge,
    boundary_of,
)

LIMIT = 1 << 20
MESSAGE = (
    b"--edge\r\nContent-Type: application/dicom\r\nContent-Length: 9\r\n\r\n\x00\r\n--edg\xff\r"
    b"\r\n--edge  \r\n\r\nsecond\r\n\r\n--edge\r\nX: y\r\n\r\n\r\n--edge--\r\nepilogue --edge"
)
PARTS = [
    ({"content-type": "application/dicom", "content-length": "9"}, b"\x00\r\n--edg\xff\r"),
    ({}, b"second\r\n"),
    ({"x": "y"}, b""),
]


def parts_of(
    pieces: list[bytes], boundary: str = "edge", **limits: int
) -> list[tuple[dict[str, str], bytes]]:
    parser = MultipartParser(boundary, **{"max_part_bytes": LIMIT, **limits})
    events: list[Event] = [event for piece in pieces for event in parser.feed(piece)]
    parser.close()
    found: list[tuple[dict[str, str], bytes]] = []
    is_open = False
    for event in events:
        if isinstance(event, PartBegins):
            assert not is_open
            found.append((event.headers, b""))
            is_open = True
        elif isinstance(event, PartData):
            assert is_open
            assert event.data
            found[-1] = (found[-1][0], found[-1][1] + event.data)
        elif isinstance(event, PartEnds):
            is_open = False
    assert not is_open
    return found


def test_whole_at_once() -> None:
    assert parts_of([MESSAGE]) == PARTS
    assert parts_of([b"preamble\r\n" + MESSAGE]) == PARTS
    assert parts_of([b"--edge--"]) == []


@pytest.mark.parametrize("cut", range(len(MESSAGE) + 1))
def test_cut_in_two_at_every_byte(cut: int) -> None:
    assert parts_of([MESSAGE[:cut], MESSAGE[cut:]]) == PARTS


def test_byte_by_byte() -> None:
    assert parts_of([bytes([byte]) for byte in MESSAGE]) == PARTS


@given(
    bodies=st.lists(st.binary(max_size=60).filter(lambda body: b"\r\n--b" not in b"\r\n" + body), max_size=4),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
@settings(max_examples=200, deadline=None)
def test_any_bodies_come_back_however_they_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    message = b"".join(b"\r\n--b\r\n\r\n" + body for body in bodies) + b"\r\n--b--"
    edges = [0, *sorted(min(cut, len(message)) for cut in cuts), len(message)]
    pieces = [message[start:end] for start, end in zip(edges, edges[1:], strict=False)]
    assert [body for _, body in parts_of(pieces, "b")] == bodies


@pytest.mark.parametrize("end", range(len(MESSAGE) - len(b"--\r\nepilogue --edge")))
def test_a_message_that_ends_too_early_is_never_taken_for_whole(end: int) -> None:
    with pytest.raises(MultipartError):
        parts_of([MESSAGE[:end]])


@pytest.mark.parametrize(
    "message",
    [
        b"--edge\r\nno colon\r\n\r\nx\r\n--edge--",
        b"--edge\r\n: no name\r\n\r\nx\r\n--edge--",
        b"--edge\r\nA B: name with space\r\n\r\nx\r\n--edge--",
        b"--edge\r\nA: 1\r\na: 2\r\n\r\nx\r\n--edge--",
        b"--edge\r\nA: nul\x00\r\n\r\nx\r\n--edge--",
        b"--edge\r\nA: bare\nB: newline\r\n\r\nx\r\n--edge--",
        b"--edgemore\r\n\r\nx\r\n--edge--",
        b"--edge junk\r\n\r\nx\r\n--edge--",
        b"",
        b"nothing of the kind",
    ],
)
def test_malformed_messages_are_refused(message: bytes) -> None:
    with pytest.raises(MultipartError):
        parts_of([message])


def test_headers_without_end_and_a_preamble_without_end_are_bounded() -> None:
    parser = MultipartParser("edge", max_part_bytes=LIMIT, max_headers_bytes=1000)
    list(parser.feed(b"--edge\r\nA: "))
    with pytest.raises(MultipartError, match="too long"):
        for _ in range(20):
            list(parser.feed(b"a" * 100))
            list(parser.feed(b"\r\n\r\n")) if len(parser._held) > 1000 else None
    parser = MultipartParser("edge", max_part_bytes=LIMIT, max_headers_bytes=1000)
    with pytest.raises(MultipartError, match="no delimiter"):
        for _ in range(20):
            list(parser.feed(b"x" * 100))
    parser = MultipartParser("edge", max_part_bytes=LIMIT)
    list(parser.feed(b"--edge"))
    with pytest.raises(MultipartError, match="something else"):
        for _ in range(20):
            list(parser.feed(b" " * 100))


def test_a_huge_part_is_refused_at_the_limit_and_nothing_of_it_is_held() -> None:
    parser = MultipartParser("edge", max_part_bytes=10_000)
    list(parser.feed(b"--edge\r\n\r\n"))
    given_out = 0
    with pytest.raises(PartTooLarge):
        for _ in range(100):
            for event in parser.feed(b"\x00" * 1000):
                given_out += len(event.data)  # type: ignore[union-attr]
            assert len(parser._held) < 20
    assert given_out <= 10_000
    assert (
        parts_of([b"--edge\r\n\r\n" + b"x" * 10_000 + b"\r\n--edge--"], max_part_bytes=10_000)[0][1]
        == b"x" * 10_000
    )


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/related; boundary=edge", "edge"),
        ('Multipart/Related; type="application/dicom"; boundary="a b:c"', "a b:c"),
        ('multipart/related;type="application/dicom;boundary=no";BOUNDARY=yes', "yes"),
        ('multipart/related; boundary="q\\uote"', "quote"),
    ],
)
def test_boundaries(content_type: str, boundary: str) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/form-data; boundary=x",
        "multipart/related",
        "multipart/related; boundary=",
        'multipart/related; boundary=""',
        "multipart/related; boundary=" + "x" * 71,
        'multipart/related; boundary="x "',
        "multipart/related; boundary=ä",
        "multipart/related; boundary=a\r\nb",
        "multipart/related; " + "a=b;" * 10_000 + "boundary=x",
    ],
)
def test_a_missing_or_impossible_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(MultipartError):
        boundary_of(content_type)
