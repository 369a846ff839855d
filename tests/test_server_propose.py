"""The coordinator proposes a study: signed, compared with the one before, and nothing else is run."""

from pathlib import Path

import pytest
from click.testing import Result
from studies import make_study, study_text, write_study_file
from test_server_aggregation import DISTRIBUTED
from test_server_files import Coordinator, a_request, refused, run

from server.propose_command import warnings
from shared_models.identity_keys import read_public_key
from shared_models.proposal import read_proposal
from shared_models.roster import Roster


class Proposer(Coordinator):
    """A coordinator with a study at hand."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.study, self.proposal = folder / "study.toml", folder / "study.proposal.toml"
        write_study_file(self.study, private=True)

    def propose(self, *more: str) -> Result:
        return run("propose", str(self.study), "--config", str(self.config), *more)

    @property
    def root(self) -> str:
        return read_public_key(self.folder / "root.pub")


@pytest.fixture
def coordinator(tmp_path: Path) -> Proposer:
    return Proposer(tmp_path / "server")


@pytest.mark.slow
def test_a_proposal_is_the_study_with_the_root_keys_signature(coordinator: Proposer) -> None:
    done = coordinator.propose()
    assert done.exit_code == 0, done.output
    study, _ = read_proposal(coordinator.proposal, coordinator.root)
    assert study == make_study(private=True)
    assert study.hash in done.output
    assert "collegium-client review study.proposal.toml" in done.output
    assert study_text(private=True) in coordinator.proposal.read_text(), "with its comments, if it had any"


@pytest.mark.slow
def test_what_changed_against_the_replaced_proposal_is_told(coordinator: Proposer) -> None:
    coordinator.propose()
    assert "The same study was proposed before" in coordinator.propose().output
    write_study_file(coordinator.study, {"epsilon = 5.0": "epsilon = 6.0"}, private=True)
    output = coordinator.propose().output
    assert f"Instead of test-study ({make_study(private=True).hash[:12]})" in output
    assert "ε of training (privacy.epsilon): 5.0 → 6.0 – WEAKENS PROTECTION" in output
    assert read_proposal(coordinator.proposal, coordinator.root)[0].privacy.epsilon == 6.0


def test_a_file_that_is_no_proposal_is_never_replaced(coordinator: Proposer, tmp_path: Path) -> None:
    before = coordinator.study.read_bytes()
    refused(
        coordinator.propose("--out", str(coordinator.study)), str(coordinator.study), "choose another --out"
    )
    assert coordinator.study.read_bytes() == before
    foreign = Proposer(tmp_path / "other")
    foreign.propose()
    theirs = foreign.proposal.read_bytes()
    refused(coordinator.propose("--out", str(foreign.proposal)), "choose another --out")
    assert foreign.proposal.read_bytes() == theirs


def test_a_proposal_is_not_proposed_again(coordinator: Proposer) -> None:
    coordinator.propose()
    refused(
        run("propose", str(coordinator.proposal), "--config", str(coordinator.config)),
        "is a proposal already",
    )


def test_another_file_is_written_where_that_is_said_and_the_server_does_not_run_it(
    coordinator: Proposer, tmp_path: Path
) -> None:
    done = coordinator.propose("--out", str(tmp_path / "next.proposal.toml"))
    assert read_proposal(tmp_path / "next.proposal.toml", coordinator.root)[0] == make_study(private=True)
    assert not coordinator.proposal.exists()
    assert "Name this one there to run it" in done.output


def test_proposing_needs_the_consortiums_root_key(coordinator: Proposer, tmp_path: Path) -> None:
    (coordinator.folder / "root.key").rename(tmp_path / "stick.key")
    refused(coordinator.propose(), "cannot be read", "--root-key")
    assert not coordinator.proposal.exists()
    assert coordinator.propose("--root-key", str(tmp_path / "stick.key")).exit_code == 0


def test_a_study_that_no_noise_makes_private_is_refused(coordinator: Proposer) -> None:
    write_study_file(coordinator.study, {"epsilon = 5.0": "epsilon = 0.001"}, private=True)
    refused(coordinator.propose(), "cannot be reached", "nothing was proposed")
    assert not coordinator.proposal.exists()


def test_a_study_with_a_problem_is_told_with_its_line(coordinator: Proposer) -> None:
    coordinator.study.write_text(study_text().replace("threshold = 2", "threshold = 1"))
    refused(coordinator.propose(), str(coordinator.study), "threshold")


@pytest.mark.parametrize(
    ("num_sites", "words"),
    [
        (0, "the roster has 0 hospitals, and a sum needs 2"),
        (1, "the roster has 1 hospital, and a sum needs 2"),
        (2, "a sum needs all 2 hospitals of the roster"),
        (3, None),
        (4, "the roster has 4 hospitals, and the study allows 3"),
    ],
)
def test_a_roster_of_the_wrong_size_is_a_warning_in_words(
    tmp_path: Path, coordinator: Proposer, num_sites: int, words: str | None
) -> None:
    for number in range(num_sites):
        coordinator.admit(a_request(tmp_path, f"site-{number}"))
    found = [one for one in warnings(make_study(), coordinator.sites()) if "the roster" in one]
    assert len(found) == (words is not None)
    assert words is None or words in found[0]
    assert words is None or f"Warning: {found[0]}" in coordinator.propose().output


def test_a_study_without_privacy_or_with_sums_of_two_is_warned_of() -> None:
    said = " ".join(warnings(make_study(), Roster(version=0)))
    for words in ('privacy.mode = "none"', "two hospitals only", "num_colluding = 0"):
        assert words in said
    careful = {
        "num_sites_max = 3": "num_sites_max = 4",
        "threshold = 2": "threshold = 3",
        "num_colluding = 0": "num_colluding = 1",
    }
    said = " ".join(warnings(make_study(careful, private=True), Roster(version=0)))
    assert "num_colluding" not in said
    assert "two hospitals" not in said
    assert "evaluation.unnoised" in " ".join(
        warnings(make_study({"\nepsilon = 4.0": "\nunnoised = true"}, private=True), Roster(version=0))
    )


# Only a proposed study is run


def test_the_server_runs_no_study_that_nobody_signed(coordinator: Proposer) -> None:
    start = ("run", "--config", str(coordinator.config))
    refused(run(*start), "is not there", "collegium-server propose")
    coordinator.proposal.write_text(coordinator.study.read_text())
    refused(run(*start), str(coordinator.proposal), "is a study that nobody signed")
    coordinator.proposal.unlink()
    coordinator.propose()
    coordinator.proposal.write_text(
        coordinator.proposal.read_text().replace("epsilon = 5.0", "epsilon = 50.0")
    )
    refused(run(*start), "is not signed by the consortium's root key")
    assert not (coordinator.folder / "state").exists()


def test_a_run_is_resumed_only_with_the_study_that_was_signed(coordinator: Proposer) -> None:
    coordinator.propose()
    folder = coordinator.folder / "state" / "runs" / "run-1"
    folder.mkdir(parents=True)
    resume = ("run", "--config", str(coordinator.config), "--resume", "run-1")
    refused(run(*resume), 'there is no run "run-1"')
    (folder / "study.proposal.toml").write_text(coordinator.proposal.read_text().replace("1e-4", "1e-3"))
    refused(run(*resume), "is not signed by the consortium's root key")


def test_a_study_with_shared_noise_is_said_to_need_the_consent_of_each_hospitals_policy() -> None:
    shared = " ".join(warnings(make_study(DISTRIBUTED, private=True), Roster(version=0)))
    assert "policy.allow_distributed_noise" in shared
    assert "policy.allow_distributed_noise" not in " ".join(
        warnings(make_study(private=True), Roster(version=0))
    )
