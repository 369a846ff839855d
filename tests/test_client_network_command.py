"""Two users of one hospital on the command line: what each makes, runs and is told."""

import json
import os
import stat
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from client.agent import DRAINED, UNUSABLE
from client.command import app
from client.door_place import DoorError
from client.exposure import exposed
from client.launch import SiteError, last_trouble, run_agent, running
from client.membership import MembershipError
from client.network_file import read_network
from client.site_file import read_site
from server.certificates import Authority
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import identity_line, new_identity_key, read_identity_key
from shared_models.node_keys import new_node_key, public_line
from shared_models.processes import free_port
from shared_models.roster import Roster, RosterSite, write_roster
from shared_models.site_request import read_request

NETWORK_UID = 61_999
ROOT = Ed25519PrivateKey.generate()


class Two:
    """The folders of both users of "north", and the commands that each runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.side, self.site = folder, folder / "side", folder / "site"
        self.door = folder / "run" / "agent.sock"
        self.door.parent.mkdir(mode=0o750)
        (folder / "images").mkdir()
        (folder / "labels.csv").write_text("PatientID,finding\n")
        (folder / "ca.pem").write_bytes(Authority("Test").issued.certificate)
        (folder / "root.pub").write_text(identity_line(ROOT) + "\n")
        self.server = ("--server", f"127.0.0.1:{free_port()}", "--ca", str(folder / "ca.pem"))

    def run(self, *arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def init_network(self, *more: str) -> Result:
        return self.run("init-network", self.side, *self.server, "--socket", self.door, *more)

    def init(self, *connection: str | Path) -> Result:
        return self.run(
            *("init", self.site, "--name", "north", "--root", self.folder / "root.pub", "--key", "PatientID"),
            *("--images", self.folder / "images", "--labels", self.folder / "labels.csv"),
            *connection,
        )

    def make(self) -> None:
        """What both users and the administrator do, up to joining."""
        assert self.init_network().exit_code == 0
        options = ("--agent-socket", self.door, "--network-user", str(NETWORK_UID))
        done = self.init("--node-public", self.side / "node.pub", *options)
        assert done.exit_code == 0, done.output

    def join(self, entry: RosterSite) -> Result:
        write_roster(self.folder / "roster.toml", Roster(version=1, site=(entry,)), ROOT)
        return self.run("join", self.folder / "roster.toml", "--config", self.site / "site.toml")


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path)


# What each makes


def test_the_network_user_makes_its_own_key_and_file(two: Two) -> None:
    done = two.init_network("--name", "north")
    assert done.exit_code == 0, done.output
    file = read_network(two.side / "network.toml")
    assert file.agent_socket == two.door
    assert (file.name, file.state, file.server.node_key) == (
        "north",
        two.side / "state",
        two.side / "node.key",
    )
    assert stat.S_IMODE(file.server.node_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(two.side.stat().st_mode) == 0o700
    assert (two.side / "node.pub").read_text().strip() == public_line(file.server.node_key.read_bytes())


def test_a_node_key_is_never_made_again(two: Two) -> None:
    two.init_network()
    before = (two.side / "node.key").read_bytes()
    (two.side / "network.toml").unlink()
    again = two.init_network()
    assert isinstance(again.exception, ConfigurationError)
    assert "cannot be made again" in str(again.exception)
    assert (two.side / "node.key").read_bytes() == before


def test_the_data_user_asks_for_the_network_users_key_and_has_no_node_key_of_its_own(two: Two) -> None:
    two.make()
    request = read_request(two.site / "north.request.toml")
    assert request.node_key == public_line((two.side / "node.key").read_bytes())
    assert request.identity_key == identity_line(read_identity_key(two.site / "identity.key"))
    assert not (two.site / "node.key").exists()
    site = read_site(two.site / "site.toml")
    assert site.server is None
    assert site.agent is not None
    assert (site.agent.socket, site.agent.network_user) == (two.door, NETWORK_UID)


def test_init_wants_the_server_or_the_network_users_key(two: Two) -> None:
    two.init_network()
    public = ("--node-public", two.side / "node.pub")
    for connection, words in (((), "'--server' (or '--node-public')"), (two.server[:2], "'--ca' (or")):
        done = two.init(*connection)
        assert (done.exit_code, two.site.exists()) == (2, False)
        assert words in done.output
    for connection, words in (
        ((*public, *two.server), "exclude each other"),
        (("--node-public", two.side / "node.key"), "is a private key"),
    ):
        done = two.init(*connection)
        assert isinstance(done.exception, (ConfigurationError, MembershipError))
        assert words in str(done.exception)
        assert not two.site.exists()


def test_a_roster_with_another_node_key_than_the_network_users_is_refused(two: Two) -> None:
    two.make()
    entry = read_request(two.site / "north.request.toml").site
    done = two.join(entry.model_copy(update={"node_key": new_node_key()[1]}))
    assert isinstance(done.exception, MembershipError)
    assert f'another node key under "north" than {two.site / "node.pub"}' in str(done.exception)
    assert two.join(entry).exit_code == 0


# What each runs


def test_each_command_says_which_other_one_is_meant(two: Two) -> None:
    two.make()
    done = two.run("start", "--config", two.site / "site.toml")
    assert isinstance(done.exception, ConfigurationError)
    assert "Run `collegium-client agent` as this user" in str(done.exception)
    alone = two.folder / "alone.toml"
    text = (two.site / "site.toml").read_text()
    alone.write_text(
        text[: text.index("[agent]")] + '[server]\naddress = "a:1"\nca_certificate = "c"\nnode_key = "k"\n'
    )
    done = two.run("agent", "--config", alone)
    assert isinstance(done.exception, ConfigurationError)
    assert "[agent] is missing" in str(done.exception)


def test_the_agent_does_not_start_before_its_site_has_joined_nor_with_an_unsafe_door(two: Two) -> None:
    two.make()
    config = ("--config", two.site / "site.toml")
    done = two.run("agent", *config)
    assert isinstance(done.exception, MembershipError)
    assert "has not joined yet" in str(done.exception)
    two.join(read_request(two.site / "north.request.toml").site)
    two.door.parent.chmod(0o770)
    done = two.run("agent", *config)
    assert isinstance(done.exception, DoorError)
    assert "could listen in the agent's place; as root: install -d -o" in str(done.exception)
    assert not (two.site / "state" / "logs").exists()


def test_connect_refuses_a_key_that_others_can_read(two: Two) -> None:
    two.init_network()
    (two.side / "node.key").chmod(0o640)
    done = two.run("connect", "--config", two.side / "network.toml")
    assert isinstance(done.exception, ConfigurationError)
    assert "chmod 600" in str(done.exception)


@pytest.mark.slow
def test_an_agent_that_dies_is_started_again_and_the_trouble_is_kept(two: Two) -> None:
    two.make()
    site = read_site(two.site / "site.toml")
    program = (
        "import pathlib, sys; count = pathlib.Path(sys.argv[1]); count.open('a').write('x'); "
        f"sys.exit({DRAINED} if count.read_text() == 'xx' else 1)"
    )
    told: list[str] = []
    run_agent(
        site,
        two.site / "site.toml",
        tell=told.append,
        agent=[sys.executable, "-c", program, str(two.folder / "count")],
        ended=lambda: False,
    )
    assert (two.folder / "count").read_text() == "xx"
    assert told[0].startswith(f"the agent ended; see {site.state / 'logs' / 'agent.log'}. Starting it again")
    assert told[1] == "the agent was drained; the site ends"
    assert str(last_trouble(site.state)).endswith(f"see {site.state / 'logs' / 'agent.log'}")


def test_an_agent_whose_files_are_unusable_ends_with_its_own_words(two: Two) -> None:
    two.make()
    program = f"import sys; sys.stderr.write('labels.csv: mend it'); sys.exit({UNUSABLE})"
    with pytest.raises(SiteError, match=r"^labels\.csv: mend it$"):
        run_agent(
            read_site(two.site / "site.toml"),
            two.site / "site.toml",
            tell=lambda line: None,
            agent=[sys.executable, "-c", program],
            ended=lambda: False,
        )


# What each is told


def test_status_of_the_network_user_tells_what_runs_and_who_answers(two: Two) -> None:
    two.init_network("--name", "north")
    config = ("--config", two.side / "network.toml")
    values = json.loads(two.run("status", "--json", *config).output)
    assert values["supernode"] == values["forwarder"] == "not running"
    assert values["last_trouble"] is None
    assert values["agent"] == f"not running: nobody listens at {two.door}"
    assert "refuses connections" in values["server"]
    shown = two.run("status", *config).output
    assert shown.startswith("Network side of north\n  supernode: not running\n")
    assert "last trouble: none" in shown


def test_status_of_the_data_user_asks_the_agent_and_leaves_the_server_to_the_other(two: Two) -> None:
    two.make()
    values = json.loads(two.run("status", "--json", "--config", two.site / "site.toml").output)
    assert values["agent"] == {"agent": "not running"}
    assert values["server"] == "the network user's: collegium-client status --config network.toml"


@pytest.mark.slow
def test_what_runs_is_known_as_long_as_its_launcher_lives(two: Two) -> None:
    two.make()
    site = read_site(two.site / "site.toml")
    assert running(site.state) == {}
    over = threading.Event()
    launcher = threading.Thread(
        target=run_agent,
        args=(site, two.site / "site.toml"),
        kwargs={
            "tell": lambda line: None,
            "agent": [sys.executable, "-c", "input()"],
            "ended": over.is_set,
        },
    )
    launcher.start()
    try:
        deadline = time.monotonic() + 10.0
        while "agent" not in (found := running(site.state)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert found["launcher"] == os.getpid()
        with pytest.raises(SiteError, match="is running already"):
            run_agent(site, two.site / "site.toml", tell=lambda line: None, ended=lambda: True)
    finally:
        over.set()
        launcher.join()
    assert running(site.state) == {}


def test_images_and_labels_that_every_user_may_read_are_told(tmp_path: Path) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    two = Two(open_folder)
    two.make()
    site = read_site(two.site / "site.toml")
    for folder in (tmp_path, open_folder):
        folder.chmod(0o755)
    passable = all(above.stat().st_mode & stat.S_IXOTH for above in tmp_path.parents)
    site.images.folder.chmod(0o755)
    site.labels.file.chmod(0o640)
    told = exposed(site)
    assert [line.split(":")[0] for line in told] == ["images.folder"] * passable
    site.images.folder.chmod(0o750)
    assert exposed(site) == []


def test_a_public_key_with_a_comment_is_kept_without_it(two: Two) -> None:
    entry = RosterSite(name="north", node_key=new_node_key()[1], identity_key=new_identity_key()[1])
    (two.folder / "node.pub").write_text(entry.node_key + " a comment\n")
    assert two.init("--node-public", two.folder / "node.pub").exit_code == 0
    assert (two.site / "node.pub").read_text() == entry.node_key + "\n"
