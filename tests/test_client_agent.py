"""The agent on its socket: order, status, draining, and who may connect."""

import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.agent import DRAINED, UNUSABLE, Agent
from client.agent_channel import (
    CONTROL,
    DOOR,
    INNER,
    AgentClient,
    AgentFailed,
    AgentUnreachable,
    socket_path,
)
from client.door_place import DoorError, DoorPlace
from client.membership import make_keys
from shared_models.identity_keys import new_identity_key
from shared_models.processes import Child, python_module


class Slow:
    """Implements `client.handler.Handler`: answers after the seconds that the message names."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.now = 0
        self.most = 0

    def handle(self, message: bytes) -> bytes:
        self.begun.append(message)
        self.now += 1
        self.most = max(self.most, self.now)
        if message == b"fail":
            self.now -= 1
            raise RuntimeError("toy failure")
        if message.startswith(b"wait"):
            time.sleep(float(message[4:]))
        self.now -= 1
        return message

    def status(self) -> dict[str, str]:
        return {"begun": str(len(self.begun))}


class Running:
    """An agent that serves in a thread."""

    def __init__(self, folder: Path) -> None:
        self.handler = Slow()
        self.door = socket_path(folder, DOOR)
        self.agent = Agent(self.handler, folder, DoorPlace(self.door, os.geteuid()))
        self.status: int | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.client, self.control = AgentClient(self.door), AgentClient(socket_path(folder, CONTROL))
        self.control.status(timeout_seconds=10.0)

    def _run(self) -> None:
        self.status = self.agent.run()

    def close(self) -> None:
        self.client.close()
        self.control.close()
        self.agent.stop()
        self.thread.join()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    agent = Running(tmp_path)
    yield agent
    agent.close()


def test_large_messages_pass_unchanged(running: Running) -> None:
    message = os.urandom(30_000_000)
    assert running.client.handle(message, timeout_seconds=30.0) == message


@pytest.mark.slow
def test_one_request_is_handled_at_a_time_and_status_is_answered_meanwhile(running: Running) -> None:
    threads = [
        threading.Thread(target=running.client.handle, args=(b"wait0.3",), kwargs={"timeout_seconds": 10.0})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert running.control.status()["agent"] == "working"
    for thread in threads:
        thread.join()
    assert running.handler.most == 1
    assert running.control.status() == {"agent": "waiting", "pid": str(os.getpid()), "begun": "3"}


@pytest.mark.slow
def test_a_request_whose_sender_gave_up_before_its_turn_is_not_begun(running: Running) -> None:
    first = threading.Thread(
        target=running.client.handle, args=(b"wait1.0",), kwargs={"timeout_seconds": 10.0}
    )
    first.start()
    time.sleep(0.2)
    with pytest.raises(TimeoutError):
        running.client.handle(b"late", timeout_seconds=0.3)
    first.join()
    assert running.client.handle(b"next", timeout_seconds=5.0) == b"next"
    assert running.handler.begun == [b"wait1.0", b"next"]


def test_a_failure_of_the_handler_is_told_without_ending_the_agent(running: Running) -> None:
    with pytest.raises(AgentFailed):
        running.client.handle(b"fail", timeout_seconds=5.0)
    assert running.client.handle(b"next", timeout_seconds=5.0) == b"next"


def test_a_drained_agent_finishes_what_runs_takes_nothing_new_and_ends(running: Running) -> None:
    replies: list[bytes] = []
    first = threading.Thread(
        target=lambda: replies.append(running.client.handle(b"wait0.5", timeout_seconds=9.0))
    )
    first.start()
    time.sleep(0.2)
    running.control.drain()
    with pytest.raises((AgentUnreachable, AgentFailed)):
        running.client.handle(b"new", timeout_seconds=5.0)
    first.join()
    running.thread.join(10.0)
    assert replies == [b"wait0.5"]
    assert running.handler.begun == [b"wait0.5"]
    assert running.status == DRAINED


def test_through_the_door_there_is_nothing_but_handling_requests(running: Running) -> None:
    for forbidden in (running.client.drain, running.client.status):
        with pytest.raises(AgentFailed, match="UNIMPLEMENTED"):
            forbidden()
    with pytest.raises(AgentFailed, match="UNIMPLEMENTED"):
        running.control.handle(b"hello", timeout_seconds=5.0)
    assert running.handler.begun == []
    assert running.client.handle(b"hello", timeout_seconds=5.0) == b"hello"


def test_only_the_owner_reaches_what_lies_behind_the_door(running: Running) -> None:
    for name in (INNER, CONTROL):
        assert stat.S_IMODE(running.door.with_name(name).stat().st_mode) == 0o600
    assert stat.S_IMODE(running.door.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(running.door.stat().st_mode) == 0o660


def test_an_agent_whose_door_cannot_be_opened_ends_and_leaves_no_socket(tmp_path: Path) -> None:
    door = tmp_path / "door"
    door.write_text("somebody's file")
    agent = Agent(Slow(), tmp_path, DoorPlace(door, os.geteuid()))
    with pytest.raises(DoorError, match="is no socket"):
        agent.run()
    assert list((tmp_path / "agent").iterdir()) == []
    assert door.read_text() == "somebody's file"


def test_an_agent_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with AgentClient(socket_path(tmp_path)) as client, pytest.raises(AgentUnreachable):
        client.status()


def test_a_state_folder_that_is_too_long_for_a_socket_gets_one_elsewhere(tmp_path: Path) -> None:
    long, other = tmp_path / ("x" * 100), tmp_path / ("y" * 100)
    assert len(str(socket_path(long))) <= 100
    assert socket_path(long) == socket_path(long) != socket_path(other)
    assert socket_path(long).parent.parent.stat().st_uid == os.getuid()


def test_a_folder_that_others_can_write_never_holds_the_socket(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    planted = tmp_path / f"collegium-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    with pytest.raises(ValueError, match="not only this user's to write"):
        socket_path(tmp_path / ("x" * 100))


@pytest.mark.thorough
def test_an_agent_whose_site_has_not_joined_says_what_to_do_and_is_not_started_again(tmp_path: Path) -> None:
    config = tmp_path / "site.toml"
    config.write_text(
        'name = "north"\nstate = "state"\n[images]\nfolder = "images"\n[labels]\n'
        'file = "labels.csv"\nkey = "PatientID"\n[policy]\nmin_cohort = 2\nmin_patients = 1\n'
        "max_unusable_share = 0.2\nmax_runs_per_study = 1\n"
        'min_threshold = 1\nallowed_tasks = ["binary-classification"]\nallowed_architectures = ["small-cnn"]\n'
        '[consortium]\nroot = "root.pub"\n'
        'roster = "roster.toml"\nidentity_key = "identity.key"\n',
        encoding="utf-8",
    )
    make_keys(tmp_path, "north")
    (tmp_path / "root.pub").write_text(new_identity_key()[1], encoding="ascii")
    agent = Child(
        "agent",
        python_module("client.agent", "--config", str(config)),
        log=tmp_path / "agent.log",
        environment={},
    )
    try:
        assert agent.wait(60.0)
        assert agent.ended() == UNUSABLE
        said = agent.said()
    finally:
        agent.stop()
    assert "this site has not joined yet. Send north.request.toml to the coordinator" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_the_agent_and_its_channel_know_nothing_of_flower() -> None:
    program = "import client.agent, client.launch, client.command, sys; print('flwr' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"
