"""The one call that the gate answers itself, attacked from outside with nothing but a connection."""

import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from toy_gate import ToyGate

from server import gate_doctor
from server.certificates import Authority

TARGET = "/v1/collegium/doctor"


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyGate]:
    with ToyGate(tmp_path_factory.mktemp("gate"), Authority("Toy"), roster_version=7) as running:
        yield running


def connected(gate: ToyGate) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(("127.0.0.1", gate.port), 10.0))


def everything(tls: ssl.SSLSocket) -> bytes:
    answer = b""
    while piece := tls.recv(65536):
        answer += piece
    return answer


def raw(gate: ToyGate, request: bytes) -> bytes:
    with connected(gate) as tls:
        tls.sendall(request)
        return everything(tls)


def ask(gate: ToyGate, body: bytes, *lines: str) -> tuple[int, bytes]:
    head = "\r\n".join(
        [
            f"POST {TARGET} HTTP/1.1",
            "Host: x",
            "Connection: close",
            f"Content-Length: {len(body)}",
            *lines,
            "",
            "",
        ]
    )
    answer = raw(gate, head.encode() + body)
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]


def test_the_answer_says_the_time_the_rosters_version_and_what_came_and_nothing_else(gate: ToyGate) -> None:
    status, text = ask(gate, b"x" * 1000)
    facts = json.loads(text)
    assert status == 200
    assert set(facts) == {"time", "roster_version", "received_bytes"}
    assert abs(facts.pop("time") - time.time()) < 5
    assert facts == {"roster_version": 7, "received_bytes": 1000}
    assert gate.passed == []


@pytest.mark.parametrize(
    ("sent", "asked"), [(0, 10**9), (1000, 10**9), (200_000, 150_000), (70_000, 70_000), (9, 0)]
)
def test_never_more_comes_back_than_came(gate: ToyGate, sent: int, asked: int) -> None:
    status, text = ask(gate, bytes(sent), f"Collegium-Reply-Bytes: {asked}")
    facts, _, filler = text.partition(b"\n")
    assert status == 200
    assert len(filler) == min(sent, asked)
    assert set(filler) <= {ord(" ")}
    assert len(facts) < 200


@pytest.mark.parametrize(
    "lines",
    [
        ("Collegium-Reply-Bytes: -1",),
        ("Collegium-Reply-Bytes: 1e9",),
        ("Collegium-Reply-Bytes: ٣",),
        ("Collegium-Reply-Bytes: " + 13 * "9",),
        ("Collegium-Reply-Bytes:",),
        ("Collegium-Reply-Bytes: 1", "Collegium-Reply-Bytes: 2"),
    ],
)
def test_a_size_that_is_none_is_refused(gate: ToyGate, lines: tuple[str, ...]) -> None:
    assert ask(gate, b"12345", *lines)[0] == 400


@pytest.mark.parametrize(
    "target",
    [
        "/v1/collegium/doctor/",
        "/v1/collegium/doctor?x=1",
        "/v1/collegium/doctor#x",
        "/v1/collegium/doctor/../../control/list-nodes",
        "/v1/collegium/../collegium/doctor",
        "/v1/collegium//doctor",
        "//v1/collegium/doctor",
        "/V1/collegium/doctor",
        "/v1/collegium/%64octor",
        "/v1/collegium\\doctor",
        "/v1/collegium",
        "/v1/collegium/",
        "http://127.0.0.1/v1/collegium/doctor",
    ],
)
def test_no_other_spelling_of_the_target_is_answered(gate: ToyGate, target: str) -> None:
    request = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert int(raw(gate, request.encode()).split(b" ", 2)[1]) in (400, 404)
    assert gate.passed == []


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "OPTIONS", "CONNECT", "post"])
def test_no_other_method_is_answered(gate: ToyGate, method: str) -> None:
    request = f"{method} {TARGET} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert int(raw(gate, request.encode()).split(b" ", 2)[1]) in (400, 404)


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 4\r\nContent-Length: 9\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Content-Length: +4\r\n",
        b"X-Long: " + b"a" * 40_000 + b"\r\n",
    ],
)
def test_contradicting_or_overlong_headers_are_refused(gate: ToyGate, lines: bytes) -> None:
    head = f"POST {TARGET} HTTP/1.1\r\nHost: x\r\n".encode() + lines + b"\r\n0\r\n\r\n"
    assert int(raw(gate, head).split(b" ", 2)[1]) in (400, 431, 501)


def test_a_body_that_is_announced_too_large_is_refused_at_once(gate: ToyGate) -> None:
    head = f"POST {TARGET} HTTP/1.1\r\nHost: x\r\nContent-Length: {(256 << 20) + 1}\r\n\r\n"
    assert b"413" in raw(gate, head.encode())[:20]


def test_a_body_in_pieces_is_counted_and_cut_off_at_the_bound(
    gate: ToyGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = f"POST {TARGET} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    piece = b"1000\r\n" + bytes(4096) + b"\r\n"
    answer = raw(gate, head + 3 * piece + b"0\r\n\r\n")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["received_bytes"] == 3 * 4096
    monkeypatch.setattr("server.gate.MAX_BODY_BYTES", 8192)
    assert b"413" in raw(gate, head + 3 * piece + b"0\r\n\r\n")[:20]


def test_a_body_that_breaks_off_or_stalls_holds_no_place(
    gate: ToyGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = f"POST {TARGET} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode()
    for _ in range(2 * gate_doctor.MAX_AT_ONCE):
        with connected(gate) as tls:
            tls.sendall(head + b"only this")
    monkeypatch.setattr(gate_doctor, "MAX_SECONDS", 0.2)
    assert b"408" in raw(gate, head + b"only this")[:20]
    until(lambda: gate.doctor._num_active == 0)
    assert ask(gate, b"")[0] == 200


@pytest.mark.slow
def test_one_that_does_not_take_its_answer_is_cut_off(gate: ToyGate, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 16 << 20
    monkeypatch.setattr(gate_doctor, "MAX_SECONDS", 0.7)
    with connected(gate) as tls:
        head = f"POST {TARGET} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\nCollegium-Reply-Bytes: {size}\r\n\r\n"
        tls.sendall(head.encode() + bytes(size))
        until(lambda: gate.doctor._num_active == 1)
        until(lambda: gate.doctor._num_active == 0)
        taken = b""
        with suppress(OSError):  # it may be hung up on in the middle of a record
            taken = everything(tls)
        assert len(taken) < size


def test_only_so_many_are_served_at_a_time_and_the_other_calls_do_not_wait(gate: ToyGate) -> None:
    head = f"POST {TARGET} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n".encode()
    waiting = [connected(gate) for _ in range(gate_doctor.MAX_AT_ONCE)]
    try:
        for tls in waiting:
            tls.sendall(head)
        until(lambda: gate.doctor._num_active == gate_doctor.MAX_AT_ONCE)
        assert ask(gate, b"")[0] == 503
        call = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        assert b"400" in raw(gate, call)[:20]  # the toy SuperLink's answer
        assert gate.passed.pop() == "/v1/fleet/pull-messages"
        for tls in waiting:
            tls.sendall(10 * b"x")
            assert b"200" in tls.recv(20)
    finally:
        for tls in waiting:
            tls.close()
    until(lambda: gate.doctor._num_active == 0)
    assert ask(gate, b"")[0] == 200


def test_a_request_hidden_behind_the_doctors_is_judged_by_itself(gate: ToyGate) -> None:
    hidden = (
        b"POST /v1/control/list-nodes HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    head = f"POST {TARGET} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(hidden)}\r\n\r\n".encode()
    answers = raw(gate, head + hidden + hidden)
    assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answers)] == [200, 404]
    assert gate.passed == []


@pytest.mark.slow
def test_a_large_body_does_not_stay_in_memory(gate: ToyGate) -> None:
    size, before = 64 << 20, peak_kib()
    connection = http.client.HTTPConnection("127.0.0.1")
    connection.sock = connected(gate)
    seen: list[int] = []

    def drain() -> None:
        reply = connection.getresponse()
        while piece := reply.read(1 << 16):
            seen.append(len(piece))

    pieces = (bytes(1 << 16) for _ in range(size >> 16))
    connection.request(
        "POST", TARGET, pieces, {"Content-Length": str(size), "Collegium-Reply-Bytes": str(size)}
    )
    thread = threading.Thread(target=drain)
    thread.start()
    thread.join()
    connection.close()
    assert sum(seen) > size
    assert peak_kib() - before < 32 << 10


def peak_kib() -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", text).group(1))  # type: ignore[union-attr]


def until(condition: object, seconds: float = 10.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
