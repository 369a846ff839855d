"""``collegium-client review``: who decides on what, what is written down, and what is refused."""

import hashlib
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from studies import make_study, study_text
from typer.testing import CliRunner

from client.approvals import Approvals, Decision
from client.command import app
from client.index_report import INDEX_NAME
from client.membership import make_keys
from client.review_command import asked
from client.site_file import read_site
from client.site_journal import APPROVAL, Record, make_journal, open_journal
from privacy.journal import Journal
from privacy.ledger import Ledger, LedgerRun
from shared_models.configuration import ConfigurationError
from shared_models.identity_keys import fingerprint, identity_line, read_identity_key
from shared_models.messages import Open
from shared_models.proposal import sign_study
from shared_models.study import Study

ROOT = Ed25519PrivateKey.generate()
BASE = """
name = "north"
state = "state"
[images]
folder = "images"
[labels]
file = "labels.csv"
key = "PatientID"
[policy]
min_cohort = 2
min_threshold = 2
min_patients = 1
max_unusable_share = 1.0
max_runs_per_study = 1
allowed_tasks = ["binary-classification"]
allowed_architectures = ["small-cnn"]
[consortium]
root = "root.pub"
roster = "roster.toml"
identity_key = "identity.key"
"""


class Hospital:
    """A site that has joined nothing yet, with a proposal on the table."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, folder / "site.toml"
        self.policy()
        make_keys(folder, "north")
        (folder / "root.pub").write_text(identity_line(ROOT) + "\n")
        self.file = read_site(self.config)
        make_journal(self.file, read_identity_key(folder / "identity.key"))
        self.path = folder / "study.proposal.toml"
        self.study = self.propose()

    def policy(self, **lines: str) -> None:
        """site.toml, with these lines of the policy in place of what they replace."""
        text = BASE
        for name, value in lines.items():
            old = next((line for line in BASE.splitlines() if line.startswith(f"{name} =")), "[policy]")
            new = f"{name} = {value}"
            text = text.replace(old, new if old != "[policy]" else f"[policy]\n{new}")
        self.config.write_text(text)

    def propose(self, changes: dict[str, str] | None = None, *, root: Ed25519PrivateKey = ROOT) -> Study:
        study, text = sign_study(study_text(changes, private=True), root, origin="study.toml")
        self.path.write_text(text)
        return study

    def review(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["review", *arguments, "--config", str(self.config)])

    def approve(self, *more: str) -> Result:
        return self.review(str(self.path), "--approve", *more)

    @property
    def journal(self) -> Journal:
        return open_journal(read_site(self.config))

    @property
    def approvals(self) -> Approvals:
        return Approvals(self.journal, self.file.state)

    def decisions(self) -> tuple[Decision, ...]:
        return self.approvals.decisions()

    def asked_for(
        self, run_id: str, study: Study | None = None, *, reason: str = "awaiting-approval"
    ) -> None:
        """What the agent writes down when the server asks for a run that it refuses."""
        study = study or self.study
        request = Open(run_id=run_id, study_hash=study.hash, manifest_hash="0" * 64, roster_hash="0" * 64)
        record = Record(self.journal)
        record.refused(
            record.request(request, digest=bytes(32), num_bytes=9), request, reason=reason, detail="x"
        )


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


def refused(done: Result, *words: str) -> None:
    assert isinstance(done.exception, ConfigurationError), done.output
    for word in words:
        assert word in str(done.exception)


# Deciding on a study


def test_without_a_terminal_a_review_only_shows(hospital) -> None:
    done = hospital.review(str(hospital.path))
    assert done.exit_code == 0, done.output
    for title in ("What is trained", "What leaves the building", "What this means for one patient"):
        assert title in done.output
    assert "Nobody here has decided on it yet" in done.output
    assert "Nothing was decided" in done.output
    assert not hospital.decisions()


def test_an_approval_is_a_signed_entry_bound_to_the_hash_of_what_was_read(hospital) -> None:
    done = hospital.approve("--by", "Dr Example")
    assert done.exit_code == 0, done.output
    assert "Approved by Dr Example" in done.output
    (one,) = hospital.decisions()
    assert (one.study_hash, one.verdict, one.by, one.run_id) == (
        hospital.study.hash,
        "approved",
        "Dr Example",
        None,
    )
    assert one.signature is not None
    assert f'signature = "{one.signature}"' in hospital.path.read_text()
    (entry,) = hospital.journal.entries(APPROVAL)
    assert entry.is_signed(
        read_identity_key(hospital.folder / "identity.key").public_key().public_bytes_raw()
    )
    assert "Last decision here: approved" in hospital.review(str(hospital.path)).output


def test_the_bytes_that_are_kept_are_those_whose_hash_is_compared(hospital) -> None:
    hospital.approve()
    (kept,) = (hospital.file.state / "studies").iterdir()
    assert kept.stem == hospital.study.hash
    assert hashlib.sha256(b"collegium-study-1\n" + kept.read_bytes()).hexdigest() == hospital.study.hash
    kept.write_bytes(kept.read_bytes().replace(b'"sample_rate":0.5', b'"sample_rate":0.6'))
    with pytest.raises(ConfigurationError, match="is another study than the one that was approved"):
        hospital.approvals.study(hospital.study.hash)


def test_the_unix_user_decides_where_nobody_else_is_named(hospital) -> None:
    import getpass

    hospital.approve()
    assert hospital.decisions()[0].by == getpass.getuser()


def test_a_refusal_needs_a_reason_and_keeps_it(hospital) -> None:
    refused(hospital.review(str(hospital.path), "--refuse"), "a refusal needs a reason")
    refused(hospital.review(str(hospital.path), "--refuse", "--reason", "  "), "a refusal needs a reason")
    refused(
        hospital.review(str(hospital.path), "--approve", "--refuse", "--reason", "x"), "exclude each other"
    )
    assert not hospital.decisions()
    done = hospital.review(str(hospital.path), "--refuse", "--reason", "too few hospitals")
    assert done.exit_code == 0
    assert [(one.verdict, one.reason) for one in hospital.decisions()] == [("refused", "too few hospitals")]
    assert not hospital.approvals.is_approved(hospital.study.hash)


def test_one_digit_makes_another_study_without_an_approval(hospital) -> None:
    hospital.approve()
    other = hospital.propose({"learning_rate = 0.1": "learning_rate = 0.2"})
    assert other.hash != hospital.study.hash
    assert not hospital.approvals.is_approved(other.hash)
    shown = hospital.review(str(hospital.path)).output
    assert "Nobody here has decided on it yet" in shown
    assert "learning rate (training.learning_rate): 0.1 → 0.2" in shown


def test_a_value_changed_after_signing_is_refused(hospital) -> None:
    hospital.path.write_text(hospital.path.read_text().replace("epsilon = 5.0", "epsilon = 5.1"))
    refused(hospital.approve(), "is not signed by the consortium's root key", "a value was changed")
    assert not hospital.decisions()


def test_another_consortiums_study_and_an_unsigned_one_are_refused(hospital) -> None:
    hospital.propose(root=Ed25519PrivateKey.generate())
    refused(hospital.approve(), fingerprint(identity_line(ROOT)), "another consortium's study")
    hospital.path.write_text(study_text(private=True))
    refused(hospital.approve(), "is a study that nobody signed")
    assert not hospital.decisions()


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [
        {"min_threshold": "3"},
        {"min_cohort": "3"},
        {"allowed_tasks": '["segmentation"]'},
        {"allowed_architectures": '["unet"]'},
        {"lifetime_epsilon": "1.0\nlifetime_delta = 1e-5"},
    ],
    ids=lambda policy: next(iter(policy)),
)
def test_what_the_policy_refuses_cannot_be_approved_before_the_policy_is_changed(hospital, policy) -> None:
    hospital.policy(**policy)
    head = hospital.journal.head
    done = hospital.approve()
    assert done.exit_code == 1
    assert f"policy.{next(iter(policy))}" in done.output
    assert "nothing was written" in done.output
    assert hospital.journal.head == head
    assert not (hospital.file.state / "studies").exists()
    refusing = hospital.review(str(hospital.path), "--refuse", "--reason", "policy")
    assert refusing.exit_code == 0, "refusing is always possible"
    hospital.policy()
    assert hospital.approve().exit_code == 0


def test_a_study_whose_runs_are_used_up_cannot_be_approved_again(hospital) -> None:
    ledger = Ledger(hospital.journal)
    ledger.open_run(
        LedgerRun(
            run_id="run-1",
            study_hash=hospital.study.hash,
            sample_rate=0.5,
            noise_multiplier=2.0,
            delta=1e-4,
            noised_count=20,
            evaluation_deviation=3.0,
            num_evaluations=2,
        )
    )
    assert hospital.approve().exit_code == 1
    hospital.policy(max_runs_per_study="2")
    assert hospital.approve().exit_code == 0


def test_counts_are_shown_where_the_index_is_of_this_study(hospital) -> None:
    def index_of(study_hash: str) -> None:
        patients = {"train": {"0": 30, "1": 10}, "validation": {"0": 5, "1": 4}, "test": {"0": 6, "1": 5}}
        summary = {"num_files": 70, "num_images": 60, "unusable_share": 1 / 7, "smallest_class": 10}
        summary["patients"] = patients
        (hospital.file.state / INDEX_NAME).write_text(
            json.dumps({"study_hash": study_hash, "summary": summary})
        )

    index_of("0" * 64)
    assert "not counted yet" in " ".join(hospital.review(str(hospital.path)).output.split())
    index_of(hospital.study.hash)
    shown = " ".join(hospital.review(str(hospital.path)).output.split())
    assert "40 for training, 9 for validation, 11 for the test" in shown


def test_scripts_get_sections_objections_and_the_decision(hospital) -> None:
    values = json.loads(hospital.review(str(hospital.path), "--json").output)
    assert values["study"] == {
        "name": "test-study",
        "title": "A study for tests",
        "hash": hospital.study.hash,
    }
    assert values["decision"] is None
    assert values["refused_by_policy"] == []
    assert {sentence["kind"] for section in values["sections"] for sentence in section["sentences"]} == {
        "plain",
        "warning",
    }
    values = json.loads(hospital.approve("--json").output)
    assert values["decision"]["verdict"] == "approved"
    hospital.policy(min_threshold="3")
    done = hospital.approve("--json")
    assert done.exit_code == 1
    values = json.loads(done.stdout)
    assert [one["reason"] for one in values["refused_by_policy"]] == ["policy"]
    assert len(hospital.decisions()) == 1


# Taking back, and lists


@pytest.mark.slow
def test_an_approval_is_taken_back_by_a_later_refusal(hospital) -> None:
    hospital.approve()
    short = hospital.study.hash[:12]
    refused(hospital.review("--withdraw", short), "needs a reason")
    refused(hospital.review("--withdraw", "ab", "--reason", "x"), "does not name one approved study", short)
    done = hospital.review("--withdraw", short, "--reason", "ethics vote lapsed", "--by", "Dr Example")
    assert done.exit_code == 0
    assert "What has left already stays in the sums" in " ".join(done.output.split())
    assert [(one.verdict, one.reason, one.by) for one in hospital.decisions()][-1] == (
        "refused",
        "ethics vote lapsed",
        "Dr Example",
    )
    assert not hospital.approvals.approved()
    refused(hospital.review("--withdraw", short, "--reason", "x"), "approved now: none")
    hospital.approve()
    assert hospital.approvals.is_approved(hospital.study.hash), "it may be approved again"


def test_all_decisions_are_listed(hospital) -> None:
    hospital.approve("--by", "A")
    hospital.review("--withdraw", hospital.study.hash, "--reason", "later", "--by", "B")
    values = json.loads(hospital.review("--list", "--json").output)
    assert [(one["by"], one["verdict"], one["reason"]) for one in values] == [
        ("A", "approved", ""),
        ("B", "refused", "later"),
    ]
    shown = hospital.review("--list").output
    assert hospital.study.hash[:12] in shown
    assert "later" in shown


def test_exactly_one_thing_is_asked_of_a_review(hospital) -> None:
    refused(hospital.review(), "name a proposal to review")
    refused(hospital.review(str(hospital.path), "--list"), "name a proposal to review")


# Runs of their own


@pytest.mark.slow
def test_a_run_waits_until_somebody_decides_on_it(hospital) -> None:
    hospital.policy(ask_each_run="true")
    assert "Each of its runs waits" in " ".join(hospital.approve().output.split())
    assert "No run waits" in hospital.review("--waiting").output
    hospital.asked_for("run-1")
    hospital.asked_for("run-1")
    hospital.asked_for("run-2", reason="data")
    assert "collegium-client review --run run-1" in hospital.review("--waiting").output
    (one,) = json.loads(hospital.review("--waiting", "--json").output)
    assert (one["run_id"], one["study_hash"]) == ("run-1", hospital.study.hash)
    done = hospital.review("--run", "run-1", "--approve")
    assert done.exit_code == 0, done.output
    assert "What is left of this hospital's privacy budget" in done.output
    assert hospital.approvals.is_approved(hospital.study.hash, "run-1")
    assert not hospital.approvals.is_approved(hospital.study.hash, "run-2")
    assert "No run waits" in hospital.review("--waiting").output


def test_a_run_is_refused_with_a_reason_and_may_be_approved_later(hospital) -> None:
    hospital.policy(ask_each_run="true")
    hospital.approve()
    hospital.asked_for("run-1")
    refused(hospital.review("--run", "run-1", "--refuse"), "a refusal needs a reason")
    assert hospital.review("--run", "run-1", "--refuse", "--reason", "holiday").exit_code == 0
    assert not hospital.approvals.is_approved(hospital.study.hash, "run-1")
    assert hospital.approvals.is_approved(hospital.study.hash), "the study stays approved"
    hospital.review("--run", "run-1", "--approve")
    assert hospital.approvals.is_approved(hospital.study.hash, "run-1")


def test_a_run_that_nobody_asked_for_or_of_a_study_that_is_not_approved_is_refused(hospital) -> None:
    refused(hospital.review("--run", "run-9", "--approve"), 'never asked for a run "run-9"', "none")
    hospital.asked_for("run-1", reason="study-not-approved")
    refused(
        hospital.review("--run", "run-1", "--approve"), "is not approved here", "review its proposal first"
    )
    assert not hospital.decisions()


def test_a_run_that_the_budget_does_not_pay_for_cannot_be_approved(hospital) -> None:
    hospital.policy(ask_each_run="true")
    hospital.approve()
    hospital.asked_for("run-1")
    hospital.policy(ask_each_run="true", lifetime_epsilon="1.0\nlifetime_delta = 1e-5")
    done = hospital.review("--run", "run-1", "--approve")
    assert done.exit_code == 1
    assert "nothing was written" in done.output
    assert not hospital.approvals.is_approved(hospital.study.hash, "run-1")


# On a terminal


def answering(*answers: str) -> tuple[Callable[..., str], list[Any]]:
    left, offered = list(answers), list[Any]()

    def prompt(question: str, **options: Any) -> str:
        offered.append(getattr(options["type"], "choices", None))
        return left.pop(0)

    return prompt, offered


def test_the_question_offers_approval_only_where_the_policy_does() -> None:
    prompt, offered = answering("approve")
    assert asked(refused=False, prompt=prompt) == ("approved", "")
    assert list(offered[0]) == ["approve", "refuse", "later"]
    prompt, offered = answering("later")
    assert asked(refused=True, prompt=prompt) == (None, "")
    assert list(offered[0]) == ["refuse", "later"]


def test_a_refusal_at_the_terminal_is_asked_for_its_reason_until_there_is_one() -> None:
    prompt, _ = answering("refuse", "  ", "too small a cohort ")
    assert asked(refused=False, prompt=prompt) == ("refused", "too small a cohort")


@pytest.mark.slow
def test_on_a_real_terminal_the_study_that_was_shown_is_the_one_that_is_approved(hospital) -> None:
    """The file is exchanged while the question is open; what counts is what was read."""
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "client.command",
        "review",
        str(hospital.path),
        "--config",
        str(hospital.config),
    ]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 90
    try:
        while b"Decide" not in shown:
            assert time.monotonic() < deadline, shown.decode()
            if select.select([ours], [], [], 1.0)[0]:
                shown += os.read(ours, 4096)
        other = hospital.propose({"learning_rate = 0.1": "learning_rate = 0.2"})
        os.write(ours, b"approve\n")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    (one,) = hospital.decisions()
    assert (one.study_hash, one.verdict) == (hospital.study.hash, "approved")
    assert one.study_hash != other.hash
    assert hospital.approvals.approved() == (make_study(private=True),)
