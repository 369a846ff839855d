"""The door to the agent: whom it lets in, and what it hands on."""

import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from client.door import MAX_CONNECTIONS, Door
from client.door_place import DoorError, DoorPlace, door_place
from client.network_command import door_status
from client.site_file import AgentDoor, SiteFile, read_site

MINE = os.geteuid()
STRANGER = 61999  # a uid without an account
Answer = Callable[[socket.socket], None]


def mirror(connection: socket.socket) -> None:
    """Send everything back once the other side has ended its sending."""
    got = b"".join(iter(lambda: connection.recv(1 << 20), b""))
    connection.sendall(got)


class Inner:
    """What lies behind the door: answers each connection in a thread of its own."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path, self._answer = path, answer
        self.num = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.num += 1
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            self._answer(connection)

    def close(self) -> None:
        with suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink(missing_ok=True)


class House:
    """A door in a folder of its own, with something behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "door"
        self.stack = ExitStack()

    def open(self, *, uid: int = MINE, answer: Answer = mirror) -> Inner:
        inner = Inner(self.folder / "inner", answer)
        self.stack.callback(inner.close)
        self.stack.enter_context(Door(DoorPlace(self.path, uid), inner.path).opened(1.0))
        return inner

    def connect(self) -> socket.socket:
        made = self.stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        made.settimeout(10.0)
        made.connect(str(self.path))
        return made


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    with made.stack:
        yield made


def exchanged(connection: socket.socket, sent: bytes) -> bytes:
    """Send, end the sending, and read to the end."""

    def send() -> None:
        with suppress(BrokenPipeError):  # refused; what is read tells
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    got = b"".join(iter(lambda: connection.recv(1 << 20), b""))
    sender.join()
    return got


def hung_up(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def waited_for(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (is_true := true()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_true


# Whom it lets in


def test_anybody_but_the_named_user_is_refused_and_the_refusal_is_logged(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "collegium.door")
    inner = house.open(uid=STRANGER)
    assert hung_up(house.connect())
    assert f"refused a connection of uid {MINE} (process {os.getpid()})" in caplog.text
    assert f"only uid {STRANGER} is let in" in caplog.text
    assert inner.num == 0


def test_one_who_knocks_without_end_does_not_fill_the_log(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "collegium.door")
    house.open(uid=STRANGER)
    for _ in range(50):
        assert hung_up(house.connect())
    assert len(caplog.records) == 1


def test_so_many_connections_at_a_time_and_no_more(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "collegium.door")
    inner = house.open()
    held = [house.connect() for _ in range(MAX_CONNECTIONS)]
    assert waited_for(lambda: inner.num == MAX_CONNECTIONS)
    assert hung_up(house.connect())
    assert f"{MAX_CONNECTIONS} connections open" in caplog.text
    assert exchanged(held[0], b"hello") == b"hello"
    held[0].close()

    def room() -> bool:
        with house.connect() as one_more:
            try:
                return exchanged(one_more, b"again") == b"again"
            except ConnectionError:
                return False

    assert waited_for(room)


def test_status_tells_a_user_whether_the_door_lets_it_in(tmp_path: Path) -> None:
    assert "not running" in door_status(tmp_path / "door")
    for uid, words in ((MINE, "lets this user in"), (STRANGER, "refuses this user")):
        folder = tmp_path / str(uid)
        folder.mkdir()
        house = House(folder)
        with house.stack:
            house.open(uid=uid, answer=lambda connection: connection.sendall(b"x"))
            assert words in door_status(house.path)
    assert "not running" in door_status(house.path)


# What it hands on


def test_one_that_ends_its_sending_still_gets_the_whole_answer(house: House) -> None:
    house.open()
    for size in (0, 1, 40_000_000):
        sent = os.urandom(size)
        assert exchanged(house.connect(), sent) == sent


def test_one_that_reads_slowly_holds_up_nobody_and_loses_nothing(house: House) -> None:
    handed: list[int] = []

    def pour(connection: socket.socket) -> None:
        for _ in range(640):
            connection.sendall(bytes(100_000))
            handed.append(1)

    house.open(answer=pour)
    slow = house.connect()
    assert waited_for(lambda: len(handed) > 0)
    time.sleep(0.2)
    held_back = len(handed)
    assert held_back < 20, "what is not read is not taken either"
    quick = house.connect()
    assert sum(iter(lambda: len(quick.recv(1 << 20)), 0)) == 64_000_000
    assert sum(iter(lambda: len(slow.recv(1 << 20)), 0)) == 64_000_000


def test_one_that_vanishes_in_the_middle_leaves_the_other_side_nothing_to_wait_for(house: House) -> None:
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            pass
        ended.set()

    house.open(answer=answer)
    connection = house.connect()
    connection.sendall(b"half of a requ")
    connection.close()
    assert ended.wait(5.0)


def test_an_inner_side_that_vanishes_is_told_and_the_next_one_is_reached(house: House) -> None:
    inner = house.open(answer=lambda connection: None)
    assert hung_up(house.connect())
    inner.close()
    assert hung_up(house.connect())
    again = Inner(inner.path, mirror)
    house.stack.callback(again.close)
    assert exchanged(house.connect(), b"hello") == b"hello"


def test_what_is_on_its_way_out_when_the_door_closes_still_arrives(house: House) -> None:
    sent = os.urandom(8_000_000)
    done = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(sent)
        done.set()

    inner = Inner(house.folder / "inner", answer)
    house.stack.callback(inner.close)
    got: list[bytes] = []
    with Door(DoorPlace(house.path, MINE), inner.path).opened(5.0):
        connection = house.connect()
        reader = threading.Thread(
            target=lambda: got.append(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
        )
        reader.start()
        assert done.wait(5.0)
    reader.join()
    assert b"".join(got) == sent
    assert not house.path.exists()


# Where it is


def test_the_socket_is_never_open_to_others(house: House) -> None:
    house.open()
    assert stat.S_IMODE(house.path.stat().st_mode) == 0o660


def test_the_socket_of_an_agent_that_is_no_more_is_replaced_but_not_one_that_lives(house: House) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_over:
        left_over.bind(str(house.path))
    inner = house.open()
    second = Door(DoorPlace(house.path, MINE), inner.path)
    with pytest.raises(DoorError, match="another agent listens here"), second.opened(1.0):
        pass
    assert exchanged(house.connect(), b"hello") == b"hello"


def test_a_file_in_the_sockets_place_is_left_alone(house: House) -> None:
    house.path.write_text("mine")
    with pytest.raises(DoorError, match="is no socket"):
        house.open()
    assert house.path.read_text() == "mine"


class Place:
    """A site whose door is in a folder that a test makes worse."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        self.folder.mkdir()
        self.folder.chmod(0o2750)
        self.user: str | int = STRANGER

    def check(self) -> DoorPlace:
        door = AgentDoor(
            socket=self.folder / "agent.sock", network_user=self.user, node_public=self.folder / "node.pub"
        )
        return door_place(SiteFile.model_construct(agent=door))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_folder_that_is_only_the_agents_to_write_is_taken(place: Place) -> None:
    assert place.check() == DoorPlace(place.folder / "agent.sock", STRANGER)


@pytest.mark.parametrize("mode", [0o2770, 0o777, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(place: Place, mode: int) -> None:
    place.folder.chmod(mode)
    with pytest.raises(DoorError, match=r"could listen in the agent's place; as root: install -d -o"):
        place.check()


def test_a_folder_that_others_may_exchange_is_refused(place: Place) -> None:
    place.folder.parent.chmod(0o777)
    with pytest.raises(DoorError, match="could put a folder of their own in place of"):
        place.check()
    place.folder.parent.chmod(0o1777)
    assert place.check().uid == STRANGER


def test_a_link_above_the_folder_that_others_may_exchange_is_refused(place: Place, tmp_path: Path) -> None:
    shared, real = tmp_path / "shared", tmp_path / "real"
    shared.mkdir()
    place.folder.rename(tmp_path / "moved")
    real.mkdir()
    (tmp_path / "moved").rename(real / "run")
    (shared / "link").symlink_to(real)
    place.folder = shared / "link" / "run"
    assert place.check().uid == STRANGER
    shared.chmod(0o777)
    with pytest.raises(DoorError, match=f"may write to {shared}"):
        place.check()


def test_a_folder_that_the_network_user_cannot_pass_is_refused(place: Place) -> None:
    place.folder.chmod(0o700)
    with pytest.raises(DoorError, match=f"user {STRANGER} cannot get into"):
        place.check()
    place.folder.chmod(0o2750)
    place.user = "nobody"
    with pytest.raises(DoorError, match="user nobody cannot get into"):
        place.check()


def test_a_link_or_nothing_in_the_folders_place_is_refused(place: Place) -> None:
    real = place.folder.with_name("elsewhere")
    place.folder.rename(real)
    with pytest.raises(DoorError, match="cannot be used"):
        place.check()
    place.folder.symlink_to(real)
    with pytest.raises(DoorError, match="is not a folder"):
        place.check()


@pytest.mark.parametrize(
    ("user", "words"),
    [("root", "is root, who may read everything"), (0, "is root"), ("no-such-user", "there is no user")],
)
def test_a_network_user_that_separates_nothing_is_refused(place: Place, user: str | int, words: str) -> None:
    place.user = user
    with pytest.raises(DoorError, match=words):
        place.check()


@pytest.mark.slow
def test_a_site_names_the_server_or_the_network_user_and_not_both(tmp_path: Path) -> None:
    config = tmp_path / "site.toml"
    config.write_text(
        'name = "north"\nstate = "state"\n[images]\nfolder = "i"\n[labels]\nfile = "l"\n'
        'key = "PatientID"\n[policy]\nmin_cohort = 2\nmin_patients = 1\nmax_unusable_share = 0.2\n'
        'max_runs_per_study = 1\nmin_threshold = 1\nallowed_tasks = ["binary-classification"]\n'
        'allowed_architectures = ["small-cnn"]\n[consortium]\nroot = "r"\nroster = "r"\nidentity_key = "k"\n'
        '[agent]\nsocket = "door"\nnetwork_user = 61001\nnode_public = "node.pub"\n'
    )
    agent = read_site(config).agent
    assert agent == AgentDoor(socket=tmp_path / "door", network_user=61001, node_public=tmp_path / "node.pub")
    config.write_text(
        config.read_text() + '[server]\naddress = "a:1"\nca_certificate = "c"\nnode_key = "k"\n'
    )
    with pytest.raises(ValueError, match=r"\[server\] and \[agent\] exclude each other"):
        read_site(config)
