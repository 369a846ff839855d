"""What a site writes into its journal, and what stops when the journal is not what it should be."""

import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dp_accounting as dp
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dicom_files import Hospital, dataset
from dp_accounting import pld, rdp
from journals import IDENTITY, journal_in
from site_talk import ME, NAME, RUN, Conversation
from studies import make_study
from typer.testing import CliRunner

from client.approvals import Approvals
from client.command import app
from client.membership import own_key
from client.reasons import Reason
from client.receipt_check import check_receipts, receipts_of
from client.roles import Role
from client.secret import SecretError, SiteSecret
from client.site import Site, result_path
from client.site_file import SiteFile, read_site
from client.site_journal import check_secret, open_journal
from client.withdrawal import contributions, withdraw, withdrawn
from privacy.journal import (
    ANCHOR_NAME,
    JOURNAL_NAME,
    Entry,
    Journal,
    JournalEdited,
    JournalOlder,
    create_journal,
)
from privacy.ledger import Ledger, LedgerRun
from privacy.secure_aggregation.encoding import statement
from privacy.secure_aggregation.receipts import Receipt
from shared_models.configuration import ConfigurationError
from shared_models.messages import Answer, Refusal, encode
from shared_models.study import Study
from simulations.work_folder import enrol

NUM_PATIENTS = 60
KEYS = {IDENTITY.public_key().public_bytes_raw()}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> Hospital:
    made, rows = Hospital(tmp_path_factory.mktemp("hospital")), []
    random = np.random.default_rng(1)
    for number in range(NUM_PATIENTS):
        pixels = random.integers(0, 120, (20, 20)).astype("uint8")
        pixels[5:12, 5:12] += np.uint8(100 * (number % 2))
        made.add(f"{number:04d}.dcm", dataset(pixels, patient=f"PAT-{number:04d}", image=str(number)))
        rows.append((f"PAT-{number:04d}", "opacity" if number % 2 else "clear"))
    made.label(rows)
    return made


def site_file(hospital: Hospital, folder: Path, **policy: object) -> SiteFile:
    file = hospital.site()
    allowed = file.policy.model_copy(update={"allow_no_privacy": True, **policy})
    return file.model_copy(update={"name": NAME, "state": folder / "state", "policy": allowed})


def start(hospital: Hospital, folder: Path, study: Study | None = None, **policy: object) -> Conversation:
    return Conversation(site_file(hospital, folder, **policy), study or make_study())


def entries(talk: Conversation, *kinds: str) -> tuple[Entry, ...]:
    return journal_in(talk.file.state).entries(*kinds)


def reason(reply: Answer | Refusal) -> str:
    assert isinstance(reply, Refusal)
    return reply.reason


# Every request, decision, spending and release


@pytest.mark.slow
def test_a_round_stands_in_the_journal_step_by_step_with_the_hash_of_all_that_left(
    hospital, tmp_path
) -> None:
    talk = start(hospital, tmp_path, make_study(private=True))
    talk.open()
    talk.prepare()
    talk.train(1)
    talk.opened()
    talk.close()
    kinds = [entry.kind for entry in entries(talk)]
    assert kinds == [
        *("created", "approval", "request", "run", "released"),
        *("request", "released") * 3,
        *("request", "spent", "released"),
        *("request", "released"),
        *("request", "receipts", "released"),
        *("request", "released"),
    ]
    asked = [entry.body["asked"] for entry in entries(talk, "released")]
    assert asked == ["open", "advertise", "share", "escrow", "train", "confirm", "unmask", "close"]
    (train,) = [entry for entry in entries(talk, "released") if entry.body["asked"] == "train"]
    reply = encode(Answer(to="train", run_id=RUN, round=1), talk.received)
    assert train.body["sha256"] == hashlib.sha256(reply).hexdigest()
    assert train.body["bytes"] == len(reply)
    assert (train.body["round"], train.body["run_id"]) == (1, RUN)
    journal_in(talk.file.state).verify()


def test_the_identical_request_leaves_again_and_is_recorded_again(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path)
    talk.open()
    talk.prepare()
    talk.train(1)
    first = talk.site.handle(talk.sent)
    assert first == talk.site.handle(talk.sent)
    again = [entry.body["again"] for entry in entries(talk, "released") if entry.body["asked"] == "train"]
    assert again == [False, True, True]
    assert len(entries(talk, "spent")) == 1


def test_what_cannot_be_read_stands_in_the_journal_too(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path)
    talk.site.handle(b"nonsense")
    request, refused = entries(talk)[-2:]
    assert request.body["asked"] == "unreadable"
    assert request.body["sha256"] == hashlib.sha256(b"nonsense").hexdigest()
    assert (refused.body["request"], refused.body["reason"]) == (request.sequence, "failed")


@pytest.mark.parametrize(
    ("study", "policy", "expected", "words"),
    [
        ({"threshold = 2": "threshold = 2"}, {"min_threshold": 3}, "policy", "policy.min_threshold = 3"),
        ({"min_cohort = 2": "min_cohort = 2"}, {"min_cohort": 3}, "policy", "policy.min_cohort = 3"),
        ({}, {"allowed_architectures": ("resnet-18",)}, "policy", "policy.allowed_architectures"),
        ({}, {"allowed_tasks": ("segmentation",)}, "policy", "policy.allowed_tasks"),
        ({}, {"allow_no_privacy": False}, "policy", "WITHOUT differential privacy"),
        ({}, {"lifetime_epsilon": 0.1, "lifetime_delta": 1e-5}, "policy", "policy.lifetime_epsilon"),
        ({}, {"ask_each_run": True}, "awaiting-approval", f"review --run {RUN}"),
    ],
)
def test_what_the_policy_does_not_allow_is_refused_before_any_image_is_opened_with_its_reason_in_the_journal(
    hospital,
    tmp_path,
    monkeypatch,
    study: dict[str, str],
    policy: dict[str, object],
    expected: str,
    words: str,
) -> None:
    talk = start(hospital, tmp_path, make_study(study), **policy)
    monkeypatch.setattr("client.site_data.ingest", None)
    assert reason(talk.open()) == expected
    (refused,) = entries(talk, "refused")
    assert refused.body["reason"] == expected
    assert words in str(refused.body["detail"])
    assert not (talk.file.state / "index.json").exists()


def test_an_exhausted_budget_is_refused_before_any_image_is_opened(hospital, tmp_path, monkeypatch) -> None:
    cap = {"lifetime_epsilon": 9.0, "lifetime_delta": 1e-4, "max_runs_per_study": 9}
    talk = start(hospital, tmp_path, make_study(private=True), **cap)
    talk.open()
    talk.prepare()
    for number in (1, 2, 3):
        assert isinstance(talk.train(number)[0], Answer)
    talk.restart()
    monkeypatch.setattr("client.site_data.ingest", None)
    assert reason(talk.open("run-2")) == "budget"
    assert "above policy.lifetime_epsilon = 9" in str(entries(talk, "refused")[-1].body["detail"])


def test_a_study_changed_in_one_digit_is_another_study(hospital, tmp_path, monkeypatch) -> None:
    talk = start(hospital, tmp_path)
    monkeypatch.setattr("client.site_data.ingest", None)
    talk.study = make_study({"learning_rate = 0.1": "learning_rate = 0.2"})
    assert reason(talk.open()) == "study-not-approved"
    assert "nobody at this site has approved" in str(entries(talk, "refused")[-1].body["detail"])


def test_an_approval_that_is_taken_back_ends_the_run_at_its_next_request(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path)
    talk.open()
    talk.prepare()
    assert isinstance(talk.train(1)[0], Answer)
    Approvals(journal_in(talk.file.state), talk.file.state).decide(
        talk.study, "refused", reason="no", by="dpo"
    )
    assert reason(talk.train(2)[0]) == "study-not-approved"
    assert "was refused here on" in str(entries(talk, "refused")[-1].body["detail"])
    assert len(entries(talk, "spent")) == 1


def test_a_run_is_taken_up_once_somebody_approved_it_where_the_policy_asks_each_time(
    hospital, tmp_path
) -> None:
    talk = start(hospital, tmp_path, ask_each_run=True)
    assert reason(talk.open()) == "awaiting-approval"
    approvals = Approvals(journal_in(talk.file.state), talk.file.state)
    approvals.decide(talk.study, "approved", run_id="run-9", by="dpo")
    assert reason(talk.open()) == "awaiting-approval"
    approvals.decide(talk.study, "approved", run_id=RUN, by="dpo")
    assert isinstance(talk.open(), Answer)


def test_an_approved_studys_file_that_was_changed_is_not_trained_on(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path)
    path = talk.file.state / "studies" / f"{talk.study.hash}.json"
    path.write_text(path.read_text().replace('"local_steps":2', '"local_steps":3'))
    assert reason(talk.open()) == "failed"
    assert not (talk.file.state / "index.json").exists()


# A journal that cannot be used stops everything


@pytest.mark.parametrize(
    "manipulation",
    [
        lambda state: (state / JOURNAL_NAME).unlink(),
        lambda state: (state / JOURNAL_NAME).write_bytes(b"nothing"),
        lambda state: shutil.copyfile(state / "older", state / JOURNAL_NAME),
    ],
    ids=["deleted", "overwritten", "put back"],
)
def test_with_its_journal_gone_a_running_site_trains_nothing_more_and_nothing_leaves(
    hospital, tmp_path, manipulation: Callable[[Path], object]
) -> None:
    talk = start(hospital, tmp_path)
    shutil.copyfile(talk.file.state / JOURNAL_NAME, talk.file.state / "older")
    talk.open()
    talk.prepare()
    manipulation(talk.file.state)
    reply, payload = talk.train(1)
    assert (reason(reply), payload) == ("journal", b"")
    assert isinstance(talk.site, Site)
    assert talk.site._run is None
    assert talk.site._session is None


def test_an_answer_that_cannot_be_recorded_does_not_leave(hospital, tmp_path, monkeypatch) -> None:
    talk = start(hospital, tmp_path)
    talk.open()
    talk.prepare()
    whole = Journal.append

    def full(journal: Journal, kind: str, body: dict, *, anchored: bool = True) -> Entry:
        if kind == "released":
            raise OSError(28, "No space left on device")
        return whole(journal, kind, body, anchored=anchored)

    monkeypatch.setattr(Journal, "append", full)
    reply, payload = talk.train(1)
    assert (reason(reply), payload) == ("journal", b"")
    assert len(entries(talk, "spent")) == 1, "what was spent stays spent"


# Receipts


def one_round(talk: Conversation) -> Receipt:
    """Play a round; return what the server and the peers keep of the site under test."""
    talk.train(talk.number + 1)
    total = talk.collected()
    confirmations = talk.peers.confirm(total)
    talk.peers.unmask(total, confirmations)
    return total.receipt(ME, confirmations[ME])


def test_the_confirmations_of_the_other_sites_are_kept_and_verify_under_their_keys(
    hospital, tmp_path
) -> None:
    talk = start(hospital, tmp_path)
    talk.open()
    talk.prepare()
    one_round(talk)
    kept = receipts_of(entries(talk))
    assert [receipt.site for receipt in kept] == ["site-01", "site-02"]
    for receipt, key in zip(kept, talk.peers.identities[1:], strict=True):
        public_key = key.public_key().public_bytes_raw()
        assert receipt.is_signed(public_key)
        assert not receipt.is_signed(IDENTITY.public_key().public_bytes_raw())
        assert Receipt.from_bytes(receipt.to_bytes()) == receipt


def test_the_confirmation_is_signed_over_the_head_of_the_sites_own_journal(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path)
    talk.open()
    talk.prepare()
    receipt = one_round(talk)
    assert receipt.is_signed(IDENTITY.public_key().public_bytes_raw())
    journal = journal_in(talk.file.state)
    (at,) = [entry for entry in journal.entries() if entry.hash == receipt.journal_head]
    spent = journal.entries("spent")[-1]
    assert at.sequence > spent.sequence, "what the round cost is covered by it"
    assert check_receipts(journal.verify(), [receipt], site=NAME, keys=KEYS, origin="test") == 1


def older_state(talk: Conversation) -> Receipt:
    """Play two rounds with a backup after the first; put the whole state folder back. Returns the later receipt."""
    talk.open()
    talk.prepare()
    one_round(talk)
    backup = talk.file.state.with_name("backup")
    shutil.copytree(talk.file.state, backup)
    receipt = one_round(talk)
    shutil.rmtree(talk.file.state)
    shutil.copytree(backup, talk.file.state)
    talk.restart()
    return receipt


def test_a_rollback_of_everything_is_exposed_by_another_sites_receipt(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path)
    receipt = older_state(talk)
    journal = journal_in(talk.file.state)
    old = journal.verify()
    with pytest.raises(JournalOlder, match="signed in round 2 of run run-1"):
        check_receipts(old, [receipt], site=NAME, keys=KEYS, origin="test")


def open_with(talk: Conversation, receipt: bytes) -> Answer | Refusal:
    return talk.ask(talk.open_header(), receipt)[0]


def test_a_site_whose_state_was_put_back_learns_it_from_its_own_signature_and_trains_nothing(
    hospital, tmp_path
) -> None:
    talk = start(hospital, tmp_path)
    receipt = older_state(talk)
    assert reason(open_with(talk, receipt.to_bytes())) == "journal"
    assert "restored snapshot" in str(entries(talk, "refused")[-1].body["detail"])
    assert isinstance(talk.site, Site)
    assert talk.site._run is None


def test_a_server_cannot_stop_a_site_with_receipts_that_the_site_did_not_sign(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path)
    talk.open()
    talk.prepare()
    receipt = one_round(talk)
    talk.restart()
    forged = Receipt.from_json({**receipt.to_json(), "journal_head": "7" * 64})
    for message in (b"nonsense", forged.to_bytes(), receipt.to_bytes(), b""):
        talk.restart()
        assert isinstance(open_with(talk, message), Answer)


def test_a_chain_written_anew_with_the_sites_own_key_is_exposed_by_a_peers_receipt(
    hospital, tmp_path
) -> None:
    """The hospital itself leaves one refusal out and signs everything again: only others can know."""
    talk = start(hospital, tmp_path)
    talk.site.handle(b"a request that the hospital would rather not have had")
    talk.open()
    talk.prepare()
    receipt = one_round(talk)
    (tmp_path / "anew").mkdir()
    anew = journal_in(tmp_path / "anew", site=NAME)
    for entry in entries(talk)[1:]:
        if entry.kind != "refused":
            anew.append(entry.kind, entry.body)
    rewritten = anew.verify()
    with pytest.raises(JournalOlder, match="was written anew"):
        check_receipts(rewritten, [receipt], site=NAME, keys=KEYS, origin="test")
    assert check_receipts(entries(talk), [receipt], site=NAME, keys=KEYS, origin="test") == 1


def test_a_rewritten_journal_is_exposed_whatever_name_or_key_it_gives_itself(hospital, tmp_path) -> None:
    """Who the site is, is known from elsewhere: its own site.toml, and the roster."""
    talk = start(hospital, tmp_path)
    talk.open()
    talk.prepare()
    receipt = one_round(talk)
    stranger = Ed25519PrivateKey.generate()
    for number, (identity, name) in enumerate([(IDENTITY, "elsewhere"), (stranger, NAME)]):
        anew = journal_in(tmp_path / str(number), identity, site=name).verify()
        with pytest.raises(JournalOlder, match="was written anew"):
            check_receipts(anew, [receipt], site=NAME, keys=KEYS, origin="test")
    with pytest.raises(JournalEdited, match="signed by none of its keys"):
        check_receipts(
            entries(talk),
            [receipt],
            site=NAME,
            keys={stranger.public_key().public_bytes_raw()},
            origin="test",
        )
    with pytest.raises(ConfigurationError, match="there is no receipt about"):
        check_receipts(entries(talk), [], site=NAME, keys=KEYS, origin="test")


def replaced(talk: Conversation) -> None:
    for name in (JOURNAL_NAME, ANCHOR_NAME):
        (talk.file.state / name).unlink()
    create_journal(talk.file.state, IDENTITY, site=NAME, after_loss="disk failure")
    talk.restart()


def test_a_site_that_lost_its_journal_is_not_locked_out_by_receipts_from_before(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, max_runs_per_study=9)
    talk.open()
    talk.prepare()
    before = one_round(talk).to_bytes()
    replaced(talk)
    assert isinstance(open_with(talk, before), Answer)
    talk.prepare(first_round=2)
    talk.train(2)
    total = talk.collected()
    talk.peers.confirm(total)
    talk.restart()
    assert isinstance(open_with(talk, before), Answer), "the server learnt of no later confirmation"


def test_a_state_put_back_under_a_running_site_is_noticed_when_the_run_is_opened_again(
    hospital, tmp_path
) -> None:
    talk = start(hospital, tmp_path)
    talk.open()
    talk.prepare()
    receipt = one_round(talk)
    ahead = Receipt.from_json({**receipt.to_json(), **signed_like(receipt, bytes(range(32)))})
    assert reason(open_with(talk, ahead.to_bytes())) == "journal"


def signed_like(receipt: Receipt, head: bytes) -> dict[str, str]:
    signed = statement("confirmation", receipt.position, receipt.round_ctx, receipt.survivors, head)
    return {"journal_head": head.hex(), "signature": IDENTITY.sign(signed).hex()}


# Withdrawal


def test_another_secret_is_noticed_before_anybody_who_withdrew_is_in_again(hospital, tmp_path) -> None:
    file = site_file(hospital, tmp_path)
    secret = SiteSecret.create(file.state)
    journal = create_journal(file.state, IDENTITY, site=NAME, details={"secret": secret.commitment})
    check_secret(journal, secret)
    talk = Conversation(file, make_study())
    (file.state / "site.secret").write_bytes(bytes(32))
    with pytest.raises(SecretError, match="another secret than the one that this site began with"):
        talk.restart()


def test_who_was_in_a_run_stays_written_down_when_it_is_opened_again(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path)
    talk.open()
    talk.prepare()
    gone = of_role(talk, Role.TRAIN)
    talk.train(1)
    withdraw(journal_in(talk.file.state), [gone])
    talk.restart()
    talk.open()
    journal = journal_in(talk.file.state)
    (found,) = contributions(talk.file.state, journal, Approvals(journal, talk.file.state), gone)
    assert (found.role, found.rounds) == (Role.TRAIN, (1,))


def test_a_clock_that_went_back_does_not_change_what_a_patient_contributed_to(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path)
    talk.open()
    talk.prepare()
    gone = of_role(talk, Role.TRAIN)
    talk.train(1)
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    public_key = IDENTITY.public_key().public_bytes_raw()
    late = Journal(talk.file.state, public_key=public_key, identity=IDENTITY, clock=lambda: hour_ago)
    withdraw(late, [gone])
    journal = journal_in(talk.file.state)
    (found,) = contributions(talk.file.state, journal, Approvals(journal, talk.file.state), gone)
    assert found.rounds == (1,)


def test_too_few_patients_left_after_withdrawals_end_the_run_before_anything_is_spent(
    hospital, tmp_path
) -> None:
    talk = start(hospital, tmp_path, min_patients=20)
    talk.open()
    talk.prepare()
    talk.train(1)
    assert isinstance(talk.site, Site)
    assert talk.site._run is not None
    training = talk.site._run.patients[Role.TRAIN].pseudonyms
    withdraw(journal_in(talk.file.state), training[: len(training) - 19])
    assert reason(talk.train(2)[0]) == "data"
    assert [entry.body["round"] for entry in entries(talk, "spent")] == [1]


def pseudonym(talk: Conversation, number: int) -> str:
    return SiteSecret.load(talk.file.state).pseudonym("patient", f"PAT-{number:04d}")


def of_role(talk: Conversation, role: Role) -> str:
    assert isinstance(talk.site, Site)
    assert talk.site._run is not None
    return talk.site._run.patients[role].pseudonyms[0]


def test_a_patient_who_withdrew_is_not_read_any_more_and_does_not_count_as_unusable(
    hospital, tmp_path
) -> None:
    talk = start(hospital, tmp_path, max_unusable_share=0.0)
    withdraw(journal_in(talk.file.state), [pseudonym(talk, 3), pseudonym(talk, 4), pseudonym(talk, 3)])
    assert isinstance(talk.open(), Answer)
    assert isinstance(talk.site, Site)
    assert talk.site._run is not None
    patients = {name for part in talk.site._run.patients.values() for name in part.pseudonyms}
    assert len(patients) == NUM_PATIENTS - 2
    assert patients.isdisjoint(withdrawn(journal_in(talk.file.state)))
    assert talk.site._result is not None
    assert talk.site._result.left_out == {Reason.WITHDRAWN.code: 2}


@pytest.mark.parametrize("role", list(Role))
def test_a_patient_who_withdraws_in_the_middle_of_a_run_is_left_out_of_its_next_round(
    hospital, tmp_path, role: Role
) -> None:
    talk = start(hospital, tmp_path)
    talk.open()
    talk.prepare()
    talk.train(1)
    gone = of_role(talk, role)
    before = talk.ledger.run(RUN)
    withdraw(journal_in(talk.file.state), [gone])
    talk.train(2)
    assert isinstance(talk.site, Site)
    assert talk.site._run is not None
    assert gone not in talk.site._run.patients[role].pseudonyms
    sizes = [len(part.images) for part in talk.site._run.patients.values()]
    assert sum(sizes) == NUM_PATIENTS - 1
    assert talk.ledger.run(RUN) == before, "nothing is refunded, and the count stays"


def test_the_site_can_say_which_rounds_a_patient_could_have_contributed_to(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path)
    talk.open()
    talk.prepare()
    trained, validated, tested = (of_role(talk, role) for role in (Role.TRAIN, Role.VALIDATION, Role.TEST))
    talk.train(1)
    talk.train(2)
    withdraw(journal_in(talk.file.state), [trained])
    talk.train(3)
    talk.evaluate()
    journal = journal_in(talk.file.state)
    found = {}
    for name in (trained, validated, tested, pseudonym(talk, 10_000)):
        answers = contributions(talk.file.state, journal, Approvals(journal, talk.file.state), name)
        found[name] = [(one.run_id, one.role, one.rounds) for one in answers]
    assert found[trained] == [(RUN, Role.TRAIN, (1, 2))]
    assert found[validated] == [(RUN, Role.VALIDATION, (2, 4))], "after rounds 1 and 3"
    assert found[tested] == [(RUN, Role.TEST, (4,))]
    assert found[pseudonym(talk, 10_000)] == []
    patients = result_path(talk.file.state, RUN).with_name("patients.json")
    assert patients.stat().st_mode & 0o777 == 0o600


# The commands


@pytest.fixture
def site(hospital, tmp_path) -> Path:
    """A site on disk, with a study approved; returns the path of its site.toml."""
    folder = tmp_path / "site"
    folder.mkdir()
    path = folder / "site.toml"
    path.write_text(
        f'name = "north"\nstate = "state"\n[images]\nfolder = "{hospital.images}"\n[labels]\n'
        f'file = "{hospital.labels}"\nkey = "PatientID"\n[policy]\nmin_cohort = 2\nmin_patients = 1\n'
        "max_unusable_share = 0.2\nmax_runs_per_study = 1\nmin_threshold = 2\n"
        'allowed_tasks = ["binary-classification"]\nallowed_architectures = ["small-cnn"]\n'
        'lifetime_epsilon = 8.0\nlifetime_delta = 1e-5\n[consortium]\nroot = "root.pub"\n'
        'roster = "roster.toml"\nidentity_key = "identity.key"\n'
    )
    enrol(tmp_path / "server", [path], make_study(private=True))
    return path


def run(*arguments: str, config: Path, words: str | None = None) -> str:
    done = CliRunner().invoke(app, [*arguments, "--config", str(config)], input=words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_journal_show_tells_each_entry_in_words_and_as_json(site: Path) -> None:
    shown = run("journal", "show", config=site)
    assert "journal of north" in shown
    assert "simulation approved test-study" in shown
    found = json.loads(run("journal", "show", "--json", "--kind", "approval", config=site))
    assert [entry["kind"] for entry in found] == ["approval"]


LEDGER_RUN = {
    "study_hash": "a" * 64,
    "sample_rate": 0.1,
    "noise_multiplier": 2.0,
    "delta": 1e-5,
    "noised_count": 100,
    "evaluation_deviation": 3.0,
    "num_evaluations": 2,
}


@pytest.mark.slow
def test_the_ledger_tells_each_run_by_both_ways_to_add_up_and_counts_attempts(site: Path) -> None:
    ledger = Ledger(open_journal(read_site(site), own_key(read_site(site))))
    ledger.open_run(
        LedgerRun(
            run_id="run-1",
            study_hash="a" * 64,
            sample_rate=0.1,
            noise_multiplier=2.0,
            delta=1e-5,
            noised_count=100,
            evaluation_deviation=3.0,
            num_evaluations=2,
            mode="distributed",
        )
    )
    for number in (1, 2):  # whatever came of them
        ledger.begin_round("run-1", number, num_steps=20)
    step = dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(2.0))
    expected = []
    for accountant in (
        pld.PLDAccountant(),
        rdp.RdpAccountant(orders=[order / 10 for order in range(30, 600)]),
    ):
        accountant.compose(dp.SelfComposedDpEvent(step, 40))
        accountant.compose(dp.GaussianDpEvent(30.0))
        expected.append(accountant.get_epsilon(1e-5))
    found = json.loads(run("ledger", "--json", config=site))
    (entry,) = found["runs"]
    assert (entry["rounds_begun"], entry["steps"]) == (2, 40)
    assert [entry["epsilon"], entry["epsilon_rdp"]] == pytest.approx(expected, rel=2e-3)
    assert entry["epsilon"] < entry["epsilon_rdp"] < found["lifetime"]["spent"], (
        "one order for all runs costs more"
    )
    shown = run("ledger", config=site)
    assert f"{entry['epsilon']:.3g}" in shown
    assert f"{entry['epsilon_rdp']:.3g}" in shown
    assert "PLD is the claim of a run" in " ".join(shown.split())


def test_the_ledger_tells_the_mode_of_each_run_also_where_an_older_version_did_not_record_it(
    site: Path,
) -> None:
    journal = open_journal(read_site(site), own_key(read_site(site)))
    ledger = Ledger(journal)
    for run_id, mode in (("20260101-1200-first-study", "local"), ("second", "distributed")):
        body = {**LEDGER_RUN, "run_id": run_id, "mode": mode}
        ledger.open_run(LedgerRun(**body))
    journal.append("run", {**LEDGER_RUN, "run_id": "third"})
    found = json.loads(run("ledger", "--json", config=site))
    assert [entry["mode"] for entry in found["runs"]] == ["local", "distributed", None]
    shown = run("ledger", config=site)
    for words in ("20260101-1200-first-study", "local", "distributed", "not"):
        assert words in shown


def test_an_exported_journal_is_verified_without_the_site(site: Path, tmp_path: Path) -> None:
    run("journal", "export", str(tmp_path / "j.json"), config=site)
    verified = run("journal", "verify", "--file", str(tmp_path / "j.json"), config=tmp_path / "nowhere.toml")
    assert '2 entries of "north", each signed, none changed, none missing' in verified
    with pytest.raises(ConfigurationError, match="exists"):
        run("journal", "export", str(tmp_path / "j.json"), config=site)
    text = (tmp_path / "j.json").read_text()
    (tmp_path / "j.json").write_text(text.replace('"approved"', '"refused"'))
    with pytest.raises(Exception, match="or changed by somebody else"):
        run("journal", "verify", "--file", str(tmp_path / "j.json"), config=site)


def test_a_lost_journal_stops_the_site_and_its_replacement_leaves_no_budget(site: Path) -> None:
    file = read_site(site)
    (file.state / JOURNAL_NAME).unlink()
    with pytest.raises(Exception, match="is not there"):
        run("ledger", config=site)
    assert "What patients spent before is not known" in run(
        "journal", "replace", "--reason", "disk failure", config=site
    )
    assert list(file.state.glob(f"{ANCHOR_NAME}.lost-*"))
    assert "It continues no earlier journal: disk failure" in run("journal", "verify", config=site)
    assert "without limit" in run("ledger", config=site)
    assert json.loads(run("ledger", "--json", config=site))["lifetime"]["spent"] is None


def test_patients_are_named_on_the_keyboard_or_in_a_file_and_never_shown(site: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("PAT-0001\n\nPAT-0002\n")
    first = run("withdraw", "--file", str(tmp_path / "ids.txt"), config=site)
    assert "2 of 2 patients are excluded from now on" in first
    again = run("withdraw", config=site, words="PAT-0002\n")
    assert "0 of 1 patients are excluded from now on, 1 were before; 2 in all" in again
    told = run("patient", config=site, words="PAT-0002\nPAT-0003\n")
    assert "Patient on line 1: withdrew on" in told
    assert "in no run of this site" in told
    for text in (first, again, told, run("journal", "show", config=site)):
        assert "PAT-" not in text
    journal = open_journal(read_site(site), own_key(read_site(site)))
    assert not any("PAT-" in json.dumps(entry.to_json()) for entry in journal.entries())


@pytest.mark.slow
def test_a_list_that_windows_saved_and_ids_that_no_patient_has_are_dealt_with(
    site: Path, tmp_path: Path
) -> None:
    assert "is not known yet" in run("withdraw", config=site, words="PAT-0009\n")
    run("index", config=site)
    (tmp_path / "ids.txt").write_bytes("\ufeffPAT-0001\r\n PAT-0002\u00a0\r\nNOBODY\r\n".encode())
    told = run("withdraw", "--file", str(tmp_path / "ids.txt"), config=site)
    assert "3 of 3 patients are excluded" in told
    assert "has the ID on line 3: look for misspellings" in told.replace("\n", " ")
    gone = withdrawn(open_journal(read_site(site)))
    secret = SiteSecret.load(read_site(site).state)
    assert {secret.pseudonym("patient", f"PAT-000{number}") for number in (1, 2, 9)} <= set(gone)


def test_a_journal_that_is_whole_is_not_replaced_and_an_export_is_private(site: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is whole: nothing is lost"):
        run("journal", "replace", "--reason", "because", config=site)
    run("journal", "export", str(tmp_path / "j.json"), config=site)
    assert (tmp_path / "j.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_index_counts_withdrawn_patients_and_takes_the_approved_study(site: Path) -> None:
    run("withdraw", config=site, words="PAT-0001\n")
    summary = json.loads(
        run("index", "--json", config=site)[run("index", "--json", config=site).index("{") :]
    )
    assert summary["left_out"] == {"withdrawn": 1}
    assert summary["unusable_share"] == 0.0


@pytest.mark.slow
def test_another_sites_receipts_file_is_checked_by_command(site: Path, tmp_path: Path) -> None:
    file = read_site(site)
    key = own_key(file)
    head = open_journal(file).head
    receipt = signed_receipt(key, head)
    (tmp_path / "good.json").write_text(json.dumps({"receipts": [receipt.to_json()]}))
    assert "1 receipts about this site" in run(
        "journal", "verify", "--receipts", str(tmp_path / "good.json"), config=site
    )
    (tmp_path / "bad.json").write_text(json.dumps({"receipts": [signed_receipt(key, bytes(32)).to_json()]}))
    with pytest.raises(JournalOlder, match="is an older copy"):
        run("journal", "verify", "--receipts", str(tmp_path / "bad.json"), config=site)
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(ConfigurationError, match="is no file of receipts"):
        run("journal", "verify", "--receipts", str(tmp_path / "none.json"), config=site)


def signed_receipt(key: Ed25519PrivateKey, head: bytes) -> Receipt:
    signature = key.sign(statement("confirmation", 0, bytes(32), bytes(32), head))
    return Receipt(
        site="north",
        run_id=RUN,
        round=1,
        position=0,
        round_ctx=bytes(32),
        survivors=bytes(32),
        journal_head=head,
        signature=signature,
    )
