"""The agent takes part in what somebody at the hospital approved, to the digit, and only as long as that stands."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dicom_files import Hospital
from journals import journal_in
from site_talk import RUN, Conversation
from studies import make_study, study_text
from test_client_site import all_erased, fill, ready, reason, start

from client.approvals import Approvals, Verdict
from client.review_leaving import vector_bytes
from client.site_journal import REFUSED, RELEASED
from client.waiting_runs import waiting_runs
from shared_models.identity_keys import identity_line
from shared_models.messages import Advertise, Answer, Close, Train
from shared_models.proposal import read_proposal, sign_study
from shared_models.study import Study


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    made = Hospital(tmp_path_factory.mktemp("hospital"))
    fill(made)
    return made


def approvals(talk: Conversation) -> Approvals:
    return Approvals(journal_in(talk.file.state, talk.peers.identities[0]), talk.file.state)


def decide(
    talk: Conversation, verdict: Verdict, *, run_id: str | None = None, study: Study | None = None
) -> None:
    """What somebody at the hospital does in another process while the agent runs."""
    approvals(talk).decide(study or talk.study, verdict, reason="why", run_id=run_id, by="Dr Example")


def last_refusal(talk: Conversation) -> dict[str, object]:
    return dict(journal_in(talk.file.state, talk.peers.identities[0]).entries(REFUSED)[-1].body)


def num_released(talk: Conversation) -> int:
    return len(journal_in(talk.file.state, talk.peers.identities[0]).entries(RELEASED))


@pytest.mark.slow
def test_a_study_changed_in_one_digit_is_refused_and_the_journal_says_why(hospital, tmp_path) -> None:
    """Before any image is opened. The approved bytes are those of the proposal; their hash is what is compared."""
    root = Ed25519PrivateKey.generate()
    path = tmp_path / "study.proposal.toml"
    path.write_text(sign_study(study_text(private=True), root, origin="study.toml")[1])
    proposed, _ = read_proposal(path, identity_line(root))
    talk = start(hospital, tmp_path, proposed)
    talk.study = make_study({"delta = 1e-4": "delta = 2e-4"}, private=True)
    assert reason(talk.open()) == "study-not-approved"
    refusal = last_refusal(talk)
    assert (refusal["asked"], refusal["reason"]) == ("open", "study-not-approved")
    assert talk.study.hash[:12] in str(refusal["detail"])
    assert "nobody at this site has approved" in str(refusal["detail"])
    assert not (tmp_path / "state" / "index.json").exists()
    talk.study = proposed
    assert isinstance(talk.open(), Answer)


@pytest.mark.parametrize(
    ("policy", "changed"),
    [
        ({"min_threshold": 3}, {}),
        ({"min_cohort": 3}, {}),
        ({"allowed_tasks": ("segmentation",)}, {}),
        ({"allowed_architectures": ("unet",)}, {}),
        ({}, {"epsilon = 5.0": "epsilon = 0.001"}),
    ],
    ids=["threshold", "cohort", "task", "architecture", "a promise that no noise keeps"],
)
def test_an_approved_study_that_the_policy_refuses_is_refused_before_any_image_is_opened(
    hospital, tmp_path, policy: dict[str, object], changed: dict[str, str]
) -> None:
    """The policy was made stricter after the approval, or an older version let it pass."""
    talk = start(hospital, tmp_path, make_study(changed, private=True), **policy)
    told = reason(talk.open())
    assert told == ("policy" if policy else "budget")
    words = f"policy.{next(iter(policy))}" if policy else "cannot be reached"
    assert words in str(last_refusal(talk)["detail"])
    assert not (tmp_path / "state" / "index.json").exists()


def test_every_reason_stands_in_the_journal_at_once(hospital, tmp_path) -> None:
    strict = {"min_threshold": 3, "min_cohort": 3, "lifetime_epsilon": 1.0, "lifetime_delta": 1e-5}
    talk = start(hospital, tmp_path, make_study(private=True), **strict)
    assert reason(talk.open()) == "policy"
    for key in ("policy.min_threshold", "policy.min_cohort", "policy.lifetime_epsilon"):
        assert key in str(last_refusal(talk)["detail"])


def test_an_exhausted_budget_refuses_the_next_run_of_an_approved_study(hospital, tmp_path) -> None:
    cap = {"lifetime_epsilon": 9.0, "lifetime_delta": 1e-4, "max_runs_per_study": 9}
    talk = ready(hospital, tmp_path, make_study(private=True), **cap)
    for number in (1, 2, 3):
        talk.train(number)
    assert reason(talk.open("run-2")) == "budget"
    assert "above policy.lifetime_epsilon = 9" in str(last_refusal(talk)["detail"])


# Each run


def test_a_run_waits_for_its_own_approval_and_the_site_then_takes_part(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study(private=True), ask_each_run=True, max_runs_per_study=2)
    assert reason(talk.open()) == "awaiting-approval"
    assert not (tmp_path / "state" / "index.json").exists()
    journal = journal_in(talk.file.state, talk.peers.identities[0])
    (waiting,) = waiting_runs(journal, approvals(talk))
    assert (waiting.run_id, waiting.study_hash) == (RUN, talk.study.hash)
    decide(talk, "approved", run_id=RUN)
    assert isinstance(talk.open(), Answer)
    assert reason(talk.open("run-2")) == "awaiting-approval", "of that run only"


def test_a_refused_run_is_told_apart_from_one_that_waits(hospital, tmp_path) -> None:
    """The server asks a site that waits again and again; a refusal is final."""
    talk = start(hospital, tmp_path, make_study(private=True), ask_each_run=True)
    decide(talk, "refused", run_id=RUN)
    assert reason(talk.open()) == "study-not-approved"
    assert f"run {RUN} of study" in str(last_refusal(talk)["detail"])
    assert "by Dr Example" in str(last_refusal(talk)["detail"])


# An approval that is taken back


@pytest.mark.parametrize("of_run", [False, True], ids=["of the study", "of this run"])
def test_a_withdrawn_approval_stops_a_run_in_the_middle_and_erases_its_secrets(
    hospital, tmp_path, of_run
) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    assert isinstance(talk.train(1)[0], Answer)
    setup, current, charged = talk.session._setup, talk.session._round, talk.ledger.rounds(RUN)
    decide(talk, "refused", run_id=RUN if of_run else None)
    released = num_released(talk)
    assert reason(talk.train(2)[0]) == "study-not-approved"
    assert talk.site.status()["run"] == "none"
    assert all_erased([setup, current])
    assert talk.ledger.rounds(RUN) == charged, "nothing more was spent, and nothing is refunded"
    assert reason(talk.advertise(first_round=2)[0]) == "study-not-approved"
    assert reason(talk.ask(talk.header(Close))[0]) == "study-not-approved"
    assert num_released(talk) == released


def test_even_the_stored_reply_is_not_given_again_after_a_withdrawal(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    first = talk.train(1)
    assert talk.train(1) == first
    decide(talk, "refused")
    assert reason(talk.train(1)[0]) == "study-not-approved"


@pytest.mark.slow
def test_a_study_that_is_approved_again_goes_on_after_a_new_setup(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    talk.train(1)
    decide(talk, "refused")
    assert reason(talk.train(2)[0]) == "study-not-approved"
    decide(talk, "approved")
    assert reason(talk.train(2)[0]) == "not-open"
    assert isinstance(talk.open(), Answer)
    talk.prepare(first_round=2)
    assert isinstance(talk.train(2)[0], Answer)
    talk.opened()


def test_another_approved_study_is_no_way_around_a_withdrawal(hospital, tmp_path) -> None:
    """The server names the hash of a study that is approved, in a run of the one that no longer is."""
    talk = ready(hospital, tmp_path, make_study(private=True))
    other = make_study({"learning_rate = 0.1": "learning_rate = 0.2"}, private=True)
    decide(talk, "approved", study=other)
    decide(talk, "refused")
    for request in (
        Train(run_id=RUN, study_hash=other.hash, round=1, round_set=(0, 1, 2)),
        Advertise(run_id=RUN, study_hash=other.hash),
    ):
        assert reason(talk.ask(request, talk.weights.tobytes())[0]) == "study-not-approved"
    assert not talk.ledger.rounds(RUN)


def test_the_refusal_of_another_study_leaves_the_open_run_alone(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    other = make_study({"learning_rate = 0.1": "learning_rate = 0.2"}, private=True)
    decide(talk, "refused", study=other)
    header = talk.open_header().model_copy(update={"run_id": "run-2", "study_hash": other.hash})
    reply = talk.ask(header)[0]
    assert reason(reply) == "study-not-approved"
    assert isinstance(talk.train(1)[0], Answer)


# What the review says, and what the agent does


@pytest.mark.slow
def test_the_bytes_that_the_review_names_are_those_that_leave(hospital, tmp_path) -> None:
    talk = ready(hospital, tmp_path, make_study(private=True))
    sent = {}
    for number in (1, 2, 3):
        talk.train(number)
        sent[number] = len(talk.received)
    talk.evaluate()
    sent[4] = len(talk.received)
    assert sent == vector_bytes(talk.study)


@pytest.mark.slow
def test_the_counts_that_the_review_shows_are_those_of_the_run(hospital, tmp_path) -> None:
    from client.index_report import read_counts
    from client.roles import Role

    talk = ready(hospital, tmp_path, make_study(private=True))
    counts = read_counts(talk.file.state, talk.study.hash)
    assert counts is not None
    own = json.loads((Path(talk.file.state) / "runs" / RUN / "site_result.json").read_text())
    assert {role.value: num for role, num in counts.num_patients.items()} == own["patients_by_role"]
    assert (counts.num_files, counts.num_images) == (own["files_found"], own["images_used"])
    assert counts.num_patients[Role.TRAIN] > 0
    assert read_counts(talk.file.state, "0" * 64) is None
