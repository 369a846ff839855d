"""The lifetime budget under SIGKILL: the agent's own process, run after run, killed at random moments.

What the journal says was spent is recomputed from the file alone, by another method than the site's: privacy loss
distributions over all rounds of all runs, where the site itself uses Rényi divergences at one order.
"""

import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dp_accounting as dp
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from dicom_files import Hospital, dataset
from dp_accounting import pld
from journals import IDENTITY, journal_in
from site_talk import NAME, Conversation
from studies import make_study

from client.agent_channel import DOOR, AgentClient, AgentFailed, AgentUnreachable, socket_path
from client.approvals import Approvals
from client.secret import SiteSecret
from client.site_file import read_site
from client.site_journal import open_journal
from shared_models.identity_keys import identity_line
from shared_models.messages import Answer, Refusal
from shared_models.processes import Child, python_module
from shared_models.roster import write_roster

pytestmark = [pytest.mark.deployed, pytest.mark.slow, pytest.mark.timeout(3000)]

DELTA = 1e-4
START_SECONDS = 90.0
STUDY = make_study(
    {"epsilon = 5.0": "epsilon = 0.6", "epsilon = 4.0": "epsilon = 0.5"},
    private=True,
)


class Killed(Exception):
    """The agent is gone in the middle of a request."""


class Agent:
    """The agent's process behind `site_talk.Handles`."""

    def __init__(self, config: Path) -> None:
        self.config, self.state = config, read_site(config).state

    def start(self) -> None:
        self.child = Child(
            "agent",
            python_module("client.agent", "--config", str(self.config)),
            log=self.state / "logs" / "agent.log",
            environment={"OMP_NUM_THREADS": "1"},
        )
        self.client = AgentClient(socket_path(self.state, DOOR))
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with AgentClient(socket_path(self.state)) as control:
                    control.status()
            except (AgentUnreachable, TimeoutError):
                assert self.child.ended() is None, self.child.said()
                assert time.monotonic() < deadline, self.child.said()
                time.sleep(0.05)
            else:
                return

    def handle(self, message: bytes) -> bytes:
        try:
            return self.client.handle(message, timeout_seconds=120.0)
        except (AgentUnreachable, AgentFailed) as error:
            raise Killed from error

    def kill(self) -> None:
        os.kill(self.child.pid, signal.SIGKILL)

    def restart(self) -> None:
        self.client.close()
        self.child.stop()
        self.start()


class WithAgent(Conversation):
    """A conversation with the agent's process."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        super().__init__(read_site(agent.config), STUDY)

    def restart(self) -> None:
        self.site = self.agent


@pytest.fixture
def talk(tmp_path: Path, cap: float) -> Iterator[WithAgent]:
    made, rows = Hospital(tmp_path / "h"), []
    random_pixels = np.random.default_rng(1)
    for number in range(30):
        pixels = random_pixels.integers(0, 200, (16, 16)).astype("uint8")
        made.add(f"{number}.dcm", dataset(pixels, patient=f"P{number}", image=str(number)))
        rows.append((f"P{number}", "opacity" if number % 2 else "clear"))
    made.label(rows)
    config = tmp_path / "site.toml"
    config.write_text(
        f'name = "{NAME}"\nstate = "s"\n[images]\nfolder = "{made.images}"\n[labels]\nfile = "{made.labels}"\n'
        'key = "PatientID"\n[policy]\nmin_cohort = 2\nmin_patients = 1\nmax_unusable_share = 0.2\n'
        'max_runs_per_study = 1000\nmin_threshold = 2\nallowed_tasks = ["binary-classification"]\n'
        f'allowed_architectures = ["small-cnn"]\nlifetime_epsilon = {cap}\nlifetime_delta = {DELTA}\n[consortium]\n'
        'root = "root.pub"\nroster = "roster.toml"\nidentity_key = "identity.key"\n[compute]\ndevice = "cpu"\n'
        "num_threads = 1\n"
    )
    running = Agent(config)
    talk = WithAgent(running)
    (tmp_path / "identity.key").touch(mode=0o600)
    (tmp_path / "identity.key").write_bytes(
        IDENTITY.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    )
    root = Ed25519PrivateKey.generate()
    (tmp_path / "root.pub").write_text(identity_line(root))
    write_roster(tmp_path / "roster.toml", talk.roster, root)
    SiteSecret.create(running.state)
    journal = journal_in(running.state, site=NAME)
    Approvals(journal, running.state).decide(STUDY, "approved", by="somebody")
    running.start()
    try:
        yield talk
    finally:
        running.client.close()
        running.child.stop()


def recomputed(path: Path, delta: float) -> tuple[float, int]:
    """Epsilon of all training and of all evaluation that the journal's file tells of, and the number of rounds.

    A patient has one role, so the larger of the two is what a patient can have lost.
    """
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    found = connection.execute("SELECT kind, body FROM entry ORDER BY sequence").fetchall()
    connection.close()
    runs = {body["run_id"]: body for kind, text in found if kind == "run" for body in [json.loads(text)]}
    spent = [json.loads(text) for kind, text in found if kind == "spent"]
    training, evaluation = pld.PLDAccountant(), pld.PLDAccountant()
    for run in runs.values():
        training.compose(dp.GaussianDpEvent(30.0))
        release = dp.GaussianDpEvent(run["evaluation_deviation"])
        evaluation.compose(dp.SelfComposedDpEvent(release, run["num_evaluations"]))
    for entry in spent:
        run = runs[entry["run_id"]]
        step = dp.PoissonSampledDpEvent(run["sample_rate"], dp.GaussianDpEvent(run["noise_multiplier"]))
        if entry["num_steps"]:
            training.compose(dp.SelfComposedDpEvent(step, entry["num_steps"]))
    return max(training.get_epsilon(delta), evaluation.get_epsilon(delta)), len(spent)


def one_run(talk: WithAgent, run_id: str) -> str:
    """Play a run as far as it goes. Returns how it ended."""
    opened = talk.open(run_id)
    if isinstance(opened, Refusal):
        return opened.reason
    talk.prepare()
    for number in (1, 2, 3):
        reply, _ = talk.train(number)
        assert isinstance(reply, Answer), reply
        talk.opened()
    return "done"


@pytest.mark.thorough
@pytest.mark.parametrize(("num_runs", "cap"), [(5, 2.0), pytest.param(50, 6.0, marks=pytest.mark.thorough)])
def test_runs_in_a_row_under_kill_9_never_spend_more_than_the_cap_and_the_run_that_would_pass_it_is_refused(
    talk: WithAgent, num_runs: int, cap: float
) -> None:
    agent, chance, ended = talk.agent, random.Random(7), dict[str, int]()
    journal = agent.state / "journal.sqlite"
    whole = 0.0  # seconds of an undisturbed run
    for number in range(num_runs):
        killer, begun = threading.Timer(chance.uniform(0.0, whole), agent.kill), time.monotonic()
        if number % 3:
            killer.start()
        try:
            how = one_run(talk, f"run-{number}")
        except Killed:
            how = "killed"
        finally:
            killer.cancel()
            if killer.ident is not None:
                killer.join()
        ended[how] = ended.get(how, 0) + 1
        whole = whole or time.monotonic() - begun
        if agent.child.ended() is not None or how == "killed":
            agent.restart()
        epsilon, _ = recomputed(journal, DELTA)
        assert epsilon <= cap, ended
    last = 0
    while (how := one_run(talk, f"last-{last}")) == "done":
        last += 1
    assert how == "budget", ended
    epsilon, rounds = recomputed(journal, DELTA)
    assert cap / 3 < epsilon <= cap, (epsilon, rounds, ended)
    print(f"{ended}, {rounds} rounds, epsilon {epsilon:.3f} of {cap}")
    refused = open_journal(read_site(agent.config)).entries("refused")[-1]
    assert refused.body["reason"] == "budget"
    assert "above policy.lifetime_epsilon" in str(refused.body["detail"])
    assert ended.get("killed", 0) >= num_runs // 5
