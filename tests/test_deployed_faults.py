"""Agents that are killed with SIGKILL at each step: the round ends without them, and they come back by themselves.

Three hospitals, each with its real agent process on its real socket; the real round loop above them. A sum of two
sites may be opened, so that one may be gone at any step. An agent that is killed when it is asked for a step is one
that answered the step before.
"""

import base64
import os
import queue
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from dicom_files import Hospital, dataset
from studies import make_study

from client.agent_channel import DOOR, AgentClient, AgentFailed, AgentUnreachable, socket_path
from client.site_file import read_site
from client.site_journal import open_journal
from privacy.ledger import Ledger
from server.checkpoint import Progress, read_checkpoint
from server.exchange import Deadline, SiteReply
from server.run import checkpoint_path, federation_of, run_study
from server.run_state import RunContext
from shared_models.messages import Answer, Request, decode_reply, decode_request, encode
from shared_models.processes import Child, python_module
from shared_models.roster import Roster
from shared_models.study import Study
from simulations.preparation import hospitals as prepared
from simulations.work_folder import enrol, write_site

pytestmark = [pytest.mark.deployed, pytest.mark.slow]
LONG = pytest.mark.thorough  # each of these takes some ten seconds; one for each step is enough for every day

NAMES = ("north", "south", "west")
START_SECONDS = 60.0
MASKED = ("advertise", "share", "escrow", "train", "evaluate", "confirm", "unmask")
STUDY = make_study(
    {
        "num_rounds = 3": "num_rounds = 6",
        "validation_rounds = [1, 3]": "validation_rounds = []",
        "local_steps = 2": "local_steps = 1",
        "threshold = 2": "threshold = 2\nstep_timeout_seconds = 10.0",
        "round_timeout_seconds = 60.0": "round_timeout_seconds = 20.0",
    }
)
"""Without privacy: a fresh agent would spend a second of each round on computing epsilon."""


def write_hospital(folder: Path, name: str, study: Study, *, num_patients: int = 24) -> Path:
    """A small hospital and its site's files. Returns the path of ``site.toml``."""
    made, rows = Hospital(folder / "hospital"), []
    random = np.random.default_rng(len(name))
    for number in range(num_patients):
        positive = number % 2
        pixels = random.integers(0, 120, (16, 16)).astype("uint8")
        pixels[5:12, 5:12] += np.uint8(100 * positive)
        made.add(f"{number}.dcm", dataset(pixels, patient=f"{name}-{number}", image=str(number)))
        rows.append((f"{name}-{number}", "opacity" if positive else "clear"))
    made.label(rows)
    hospital = prepared.Hospital(
        name=name,
        folder=folder / "hospital",
        label_key="PatientID",
        label_column="finding",
        has_roles=False,
        scanner="none",
        num_patients=num_patients,
        num_images=num_patients,
        label_counts={},
    )
    path = write_site(folder / "site", hospital, study, seed=1)
    text = path.read_text(encoding="utf-8")
    assert "max_runs_per_study = 1\n" in text
    path.write_text(text.replace("max_runs_per_study = 1\n", "max_runs_per_study = 1000\n"), encoding="utf-8")
    return path


class Agent:
    """One site's agent process, which is started again as its launcher would."""

    def __init__(self, config: Path) -> None:
        self.config, self.state = config, read_site(config).state
        self.num_starts = 0
        self.start()

    def start(self) -> None:
        self.num_starts += 1
        self.child = Child(
            self.config.parent.parent.name,
            python_module("client.agent", "--config", str(self.config)),
            log=self.state / "logs" / "agent.log",
            environment={"OMP_NUM_THREADS": "1"},
        )
        self.client = AgentClient(socket_path(self.state, DOOR))

    def kill(self, *, after_seconds: float = 0.0) -> None:
        """SIGKILL; until then it takes no more notice of anything."""
        os.kill(self.child.pid, signal.SIGSTOP)
        time.sleep(after_seconds)
        os.kill(self.child.pid, signal.SIGKILL)

    def restart(self) -> None:
        """Once it has ended."""
        assert self.child.wait(10.0)
        self.child.stop()
        self.client.close()
        self.start()

    def there(self) -> bool:
        try:
            with AgentClient(socket_path(self.state)) as control:
                control.status(timeout_seconds=2.0)
        except (AgentUnreachable, AgentFailed, TimeoutError):
            return False
        return True

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.there():
            assert self.child.ended() is None, self.child.said()
            assert time.monotonic() < deadline, self.child.said()
            time.sleep(0.05)
        self.client.close()  # a new connection does not wait before it tries again
        self.client = AgentClient(socket_path(self.state, DOOR))

    def close(self) -> None:
        self.client.close()
        self.child.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """When agents are killed.

    Attributes:
        kind: of the request at which it happens.
        round: of that request; 0 outside of rounds.
        moment: "asked": it hangs when the request arrives, and is killed; "working": as soon as the round is
            charged; "answered": its reply is lost; "done": its reply arrived.
        sites: who is killed.
    """

    kind: str
    round: int
    moment: str
    sites: tuple[str, ...] = ("west",)

    def meets(self, site: str, request: Request) -> bool:
        return (site, request.kind, getattr(request, "round", 0)) in [
            (victim, self.kind, self.round) for victim in self.sites
        ]


@dataclass
class Agents:
    """Implements `server.exchange.Exchange` over the agents' own sockets."""

    agents: Mapping[str, Agent]
    fault: Fault | None = None
    struck: set[str] = field(default_factory=set)
    heard: list[tuple[str, str, bytes]] = field(default_factory=list)

    def known_sites(self) -> tuple[str, ...]:
        return tuple(sorted(self.agents))

    def sites(self) -> tuple[str, ...]:
        return tuple(sorted(site for site, agent in self.agents.items() if agent.there()))

    def exchange(
        self,
        requests: Mapping[str, bytes],
        *,
        timeout_seconds: float,
        enough: int | None = None,
        grace_seconds: float = 0.0,
    ) -> Iterator[SiteReply]:
        deadline = Deadline(
            time.monotonic, timeout_seconds=timeout_seconds, enough=enough, grace_seconds=grace_seconds
        )
        replies: queue.SimpleQueue[tuple[str, bytes | None]] = queue.SimpleQueue()
        for site, message in requests.items():

            def carry(site: str = site, message: bytes = message) -> None:
                replies.put((site, self._carried(site, message, timeout_seconds)))

            threading.Thread(target=carry, name=f"to-{site}").start()
        for _ in requests:
            try:
                site, reply = replies.get(timeout=max(deadline.remaining, 0.0))
            except queue.Empty:
                return
            if reply is not None:
                deadline.replied()
                yield SiteReply(site=site, message=reply)

    def _carried(self, site: str, message: bytes, seconds: float) -> bytes | None:
        """The site's reply; None where there is none."""
        agent, (request, _) = self.agents[site], decode_request(message)
        fault = self.fault
        if fault is None or site in self.struck or not fault.meets(site, request):
            return self._asked(site, request, message, seconds)
        self.struck.add(site)
        killer = None
        if fault.moment == "asked":
            killer = threading.Thread(target=agent.kill, kwargs={"after_seconds": 0.3})
        elif fault.moment == "working":
            killer = threading.Thread(target=self._kill_once_charged, args=(agent, request))
        if killer is not None:
            killer.start()
            time.sleep(0.1 if fault.moment == "asked" else 0.0)
        reply = self._asked(site, request, message, seconds)
        if killer is None:
            assert reply is not None
            agent.kill()
        else:
            killer.join()
        agent.restart()
        return reply if fault.moment == "done" else None

    def _asked(self, site: str, request: Request, message: bytes, seconds: float) -> bytes | None:
        try:
            reply = self.agents[site].client.handle(message, timeout_seconds=seconds)
        except (AgentUnreachable, AgentFailed, TimeoutError):
            return None
        self.heard.append((site, request.kind, reply))
        return reply

    def _kill_once_charged(self, agent: Agent, request: Request) -> None:
        ledger = Ledger(open_journal(read_site(agent.config)))
        while request.round not in [entry.round for entry in ledger.rounds(request.run_id)]:  # type: ignore[union-attr]
            time.sleep(0.001)
        agent.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class Consortium:
    """Three agents and their roster; each test is a run of its own."""

    agents: Agents
    roster: Roster

    def run(self, folder: Path, run_id: str, fault: Fault) -> Progress:
        """Run the study to its result with *fault* in it, and wait after each round until all agents are back."""
        self.agents.fault = fault
        self.agents.struck.clear()
        self.agents.heard.clear()
        context = RunContext(
            study=STUDY,
            run_id=run_id,
            exchange=self.agents,
            federation=federation_of(STUDY, run_id, self.roster),
            checkpoint=checkpoint_path(folder, run_id),
            patience_seconds=START_SECONDS,
            start_seconds=START_SECONDS,
            tell=lambda progress: self.wait(),
        )
        result = run_study(context, engine="local")
        assert self.agents.struck == set(fault.sites), "the fault happened"
        assert len(result.rounds) == STUDY.training.num_rounds
        assert (context.checkpoint.parent / "result.json").exists()
        return read_checkpoint(context.checkpoint, study_hash=STUDY.hash)[0]

    def wait(self) -> None:
        for agent in self.agents.agents.values():
            agent.wait()


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    root = tmp_path_factory.mktemp("f")
    configs = {name: write_hospital(root / name, name, STUDY) for name in NAMES}
    roster = enrol(root / "server", list(configs.values()), STUDY)
    agents = {name: Agent(config) for name, config in configs.items()}
    running = Consortium(agents=Agents(agents), roster=roster)
    try:
        running.wait()
        yield running
    finally:
        for agent in agents.values():
            agent.close()


def charged(consortium: Consortium, site: str, run_id: str) -> set[int]:
    ledger = Ledger(open_journal(read_site(consortium.agents.agents[site].config)))
    return {entry.round for entry in ledger.rounds(run_id)}


def assert_back(progress: Progress, fault: Fault) -> None:
    """Whoever was killed is in a later round, by itself, and in the final test."""
    later = [set(record.survivors) for record in progress.rounds if record.round > max(fault.round, 1)]
    assert set(NAMES) in later
    assert progress.tested == NAMES


KNOWN_FILES = re.compile(
    r"site\.secret|journal\.(sqlite(-journal)?|anchor(\.new)?)|studies/[0-9a-f]{64}\.json|index\.json|logs/agent\.log"
    r"|runs/[a-z0-9-]+/(site_result|patients)\.json"
    r"|cache/[0-9a-f]{32}(\.lock|/(scan\.sqlite(-journal)?|catalogue\.json|images-[0-9]+\.bin))"
)


def on_disk(consortium: Consortium) -> list[str]:
    """Files of an unknown kind, and files with a piece of anything that the agent answered in secure aggregation."""
    suspect = []
    for site, agent in consortium.agents.agents.items():
        heard = [
            piece
            for name, kind, reply in consortium.agents.heard
            if name == site and kind in MASKED
            for piece in pieces(reply)
        ]
        for path in (path for path in agent.state.rglob("*") if path.is_file()):
            name, content = str(path.relative_to(agent.state)), path.read_bytes()
            lower = content.lower()
            if not KNOWN_FILES.fullmatch(name) or any(stands_in(piece, content, lower) for piece in heard):
                suspect.append(f"{site}: {name}")
    return suspect


def assert_nothing_of_a_round_on_disk(consortium: Consortium) -> None:
    """No reply was ever stored. What an agent gave to unmask were shares in plain."""
    assert not on_disk(consortium)


def pieces(reply: bytes) -> list[bytes]:
    """Some pieces of 24 bytes of the payload of an answer; refusals have none."""
    header, payload = decode_reply(reply)
    if not isinstance(header, Answer):
        return []
    if header.to == "confirm":
        payload = payload[32:]  # the head of the site's own journal stands in that journal
    step = max(32, len(payload) // 8)
    found = [payload[at : at + 24] for at in range(4, len(payload) - 24, step)]
    assert found
    return [piece for piece in found if len(set(piece)) > 8]


def stands_in(piece: bytes, content: bytes, lower: bytes) -> bool:
    if piece in content or piece.hex().encode() in lower:
        return True
    aligned = [base64.b64encode(bytes(offset) + piece)[4 if offset else 0 : -4] for offset in range(3)]
    return any(part in content for part in aligned)


@pytest.mark.thorough
def test_the_search_finds_a_stored_reply_and_a_file_of_an_unknown_kind(consortium: Consortium) -> None:
    payload = os.urandom(500)
    reply = encode(Answer(to="unmask", run_id="planted", round=1), payload)
    consortium.agents.heard[:] = [("west", "unmask", reply)]
    assert not on_disk(consortium)
    folder = consortium.agents.agents["west"].state / "runs" / "planted"
    folder.mkdir(parents=True)
    try:
        for planted in (
            reply,
            b"x" + payload,
            payload.hex().upper().encode(),
            base64.b64encode(b"x" + payload),
        ):
            (folder / "site_result.json").write_bytes(planted)
            assert on_disk(consortium) == ["west: runs/planted/site_result.json"]
        (folder / "site_result.json").write_bytes(b"harmless")
        assert not on_disk(consortium)
        (folder / "reply-1").write_bytes(b"harmless")
        assert on_disk(consortium) == ["west: runs/planted/reply-1"]
    finally:
        shutil.rmtree(folder)


def test_an_agent_that_crashes_leaves_no_image_of_its_memory(consortium: Consortium) -> None:
    for agent in consortium.agents.agents.values():
        limits = Path(f"/proc/{agent.child.pid}/limits").read_text(encoding="ascii")
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


# One agent


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        ("advertise", "asked"),
        ("share", "asked"),
        ("escrow", "asked"),
        pytest.param("escrow", "answered", marks=LONG),
    ],
)
def test_an_agent_killed_in_a_setup_misses_that_batch_and_joins_the_next(
    consortium: Consortium, tmp_path: Path, kind: str, moment: str
) -> None:
    fault = Fault(kind=kind, round=0, moment=moment)
    run_id = f"{kind}-{moment}"
    progress = consortium.run(tmp_path, run_id, fault)
    assert progress.rounds[0].survivors == ("north", "south")
    assert not [record.burned for record in progress.rounds if record.burned]
    assert_back(progress, fault)
    assert 1 not in charged(consortium, "west", run_id)
    assert_nothing_of_a_round_on_disk(consortium)


@pytest.mark.thorough
@pytest.mark.parametrize("moment", ["asked", "working", pytest.param("answered", marks=LONG)])
def test_an_agent_killed_in_training_is_not_in_the_sum_and_keeps_its_charge(
    consortium: Consortium, tmp_path: Path, moment: str
) -> None:
    fault = Fault(kind="train", round=2, moment=moment)
    run_id = f"train-{moment}"
    progress = consortium.run(tmp_path, run_id, fault)
    assert progress.rounds[1].survivors == ("north", "south")
    assert not [record.burned for record in progress.rounds if record.burned]
    assert_back(progress, fault)
    assert (2 in charged(consortium, "west", run_id)) == (moment != "asked")
    assert charged(consortium, "north", run_id) == set(range(1, 8))
    assert_nothing_of_a_round_on_disk(consortium)


@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        ("confirm", "asked"),
        pytest.param("confirm", "answered", marks=LONG),
        ("unmask", "asked"),
        ("unmask", "answered"),
        pytest.param("unmask", "done", marks=LONG),
    ],
)
def test_an_agent_killed_after_its_vector_arrived_is_in_the_sum_all_the_same(
    consortium: Consortium, tmp_path: Path, kind: str, moment: str
) -> None:
    fault = Fault(kind=kind, round=2, moment=moment)
    progress = consortium.run(tmp_path, f"{kind}-{moment}", fault)
    assert progress.rounds[1].survivors == NAMES
    assert not [record.burned for record in progress.rounds if record.burned]
    assert_back(progress, fault)
    assert_nothing_of_a_round_on_disk(consortium)


@pytest.mark.thorough
@pytest.mark.parametrize("moment", [pytest.param("asked", marks=LONG), "answered"])
def test_an_agent_killed_in_the_final_test_is_not_in_it_and_the_run_has_its_result(
    consortium: Consortium, tmp_path: Path, moment: str
) -> None:
    fault = Fault(kind="evaluate", round=STUDY.test_round, moment=moment)
    run_id = f"evaluate-{moment}"
    progress = consortium.run(tmp_path, run_id, fault)
    assert [record.survivors for record in progress.rounds] == [NAMES] * 6
    assert progress.tested == ("north", "south")
    assert (STUDY.test_round in charged(consortium, "west", run_id)) == (moment == "answered")
    assert_nothing_of_a_round_on_disk(consortium)


@pytest.mark.thorough
def test_an_agent_killed_while_it_opens_the_run_opens_it_again(
    consortium: Consortium, tmp_path: Path
) -> None:
    fault = Fault(kind="open", round=0, moment="answered")
    progress = consortium.run(tmp_path, "open-answered", fault)
    assert_back(progress, fault)
    assert_nothing_of_a_round_on_disk(consortium)


# Two agents of three: no sum can be opened


@pytest.mark.thorough
@pytest.mark.parametrize(
    "kind", [pytest.param("train", marks=LONG), "confirm", pytest.param("unmask", marks=LONG)]
)
def test_a_round_that_two_of_three_leave_is_burned_and_the_run_goes_on_with_all(
    consortium: Consortium, tmp_path: Path, kind: str
) -> None:
    fault = Fault(kind=kind, round=2, moment="asked", sites=("south", "west"))
    progress = consortium.run(tmp_path, f"two-{kind}", fault)
    assert progress.rounds[1].burned
    assert not progress.rounds[0].burned
    assert_back(progress, fault)
    assert_nothing_of_a_round_on_disk(consortium)
