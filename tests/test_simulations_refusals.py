"""One of three hospitals does not take part: it and its journal say why, it opens no image, and the others finish."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from studies import make_study
from test_simulations_faults import SitesHere

from client.approvals import Approvals
from client.membership import join, own_key
from client.site_file import read_site
from client.site_journal import open_journal
from privacy.ledger import Ledger, LedgerRun
from server.run import checkpoint_path, federation_of, run_study
from server.run_state import RunContext
from shared_models.identity_keys import read_identity_key, read_public_key
from shared_models.roster import Roster, read_roster, write_roster
from shared_models.study import Study
from simulations.preparation.hospitals import prepare, read_hospitals
from simulations.preparation.sources import PhantomSource
from simulations.work_folder import enrol, write_site

pytestmark = pytest.mark.slow

RUN, SEED, OUT = "run-1", 3, "hospital-3"
STUDY = make_study(
    {
        'modalities = ["CR"]': 'modalities = ["CR", "DX"]\nintensity = "percentiles"',
        "local_steps = 2": "local_steps = 1",
        "num_rounds = 3": "num_rounds = 2",
        "validation_rounds = [1, 3]": "validation_rounds = []",
    },
    private=True,
)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "hospitals"
    prepare(PhantomSource(num_hospitals=3, patients_per_hospital=(20,), image_size=32), out, SEED)
    return out


def policy(line: str, value: str) -> Callable[[Path], None]:
    def change(site: Path) -> None:
        lines = site.read_text(encoding="utf-8").splitlines()
        kept = [text for text in lines if not text.startswith(f"{line} =")]
        kept.insert(kept.index("[policy]") + 1, f"{line} = {value}")
        site.write_text("\n".join(kept) + "\n", encoding="utf-8")

    return change


def another_study_is_approved(**changes: Any) -> Callable[[Path], None]:
    def change(site: Path) -> None:
        file = read_site(site)
        approvals = Approvals(open_journal(file), file.state)
        approvals.decide(STUDY, "refused", reason="not this one", by="somebody")
        training = STUDY.training.model_copy(update=changes)
        approvals.decide(STUDY.model_copy(update={"training": training}), "approved", by="somebody")

    return change


def never_reviewed(site: Path) -> None:
    """As where another server proposes a study of its own: its hash is not known here."""
    file = read_site(site)
    for path in (file.state / "journal.sqlite", file.state / "journal.anchor"):
        path.unlink()
    from privacy.journal import create_journal

    create_journal(file.state, own_key(file), site=file.name)


def the_budget_is_spent(site: Path) -> None:
    policy("lifetime_epsilon", "8.0")(site)
    policy("lifetime_delta", "1e-4")(site)
    ledger = Ledger(open_journal(read_site(site)))
    ledger.open_run(
        LedgerRun(
            run_id="earlier",
            study_hash="0" * 64,
            sample_rate=0.5,
            noise_multiplier=1.0,
            delta=1e-4,
            noised_count=20,
            evaluation_deviation=1.0,
            num_evaluations=2,
        )
    )
    ledger.begin_round("earlier", 1, num_steps=20)


def a_peer_was_revoked(site: Path) -> None:
    """This hospital has joined with the next roster already; the server still works with the one before."""
    server = site.parents[2] / "server"
    root = read_identity_key(server / "root.key")
    before = read_roster(server / "roster.toml", read_public_key(server / "root.pub"))
    left = tuple(entry for entry in before.site if entry.name != "hospital-1")
    newer = site.parent / "newer.toml"
    write_roster(newer, Roster(version=before.version + 1, site=left), root)
    join(read_site(site), newer)


CASES: list[Any] = [
    pytest.param(
        another_study_is_approved(learning_rate=0.2), "study-not-approved", "was refused", id="one digit"
    ),
    pytest.param(
        never_reviewed,
        "study-not-approved",
        "nobody at this site has approved",
        id="another server's",
        marks=pytest.mark.thorough,
    ),
    pytest.param(policy("min_threshold", "3"), "policy", "policy.min_threshold = 3", id="lower threshold"),
    pytest.param(
        policy("min_cohort", "3"),
        "policy",
        "policy.min_cohort = 3",
        id="smaller cohort",
        marks=pytest.mark.thorough,
    ),
    pytest.param(
        policy("allowed_architectures", '["resnet-18"]'),
        "policy",
        "policy.allowed_architectures",
        id="architecture",
        marks=pytest.mark.thorough,
    ),
    pytest.param(the_budget_is_spent, "budget", "above policy.lifetime_epsilon = 8", id="exhausted budget"),
    pytest.param(a_peer_was_revoked, "roster-differs", "another roster", id="revoked peer"),
]


@pytest.mark.parametrize(("manipulate", "reason", "words"), CASES)
def test_one_hospital_refuses_before_any_image_is_opened_and_the_others_finish(
    tmp_path: Path, hospitals: Path, manipulate: Callable[[Path], None], reason: str, words: str
) -> None:
    paths = {
        hospital.name: write_site(tmp_path / "sites" / hospital.name, hospital, STUDY, seed=SEED)
        for hospital in read_hospitals(hospitals).hospitals
    }
    roster = enrol(tmp_path / "server", list(paths.values()), STUDY)
    manipulate(paths[OUT])
    result = run(tmp_path, STUDY, paths, roster)

    assert [tuple(entry["survivors"]) for entry in result["rounds"]] == [("hospital-1", "hospital-2")] * 2
    told = {entry["name"]: entry.get("refused") for entry in result["sites"]}
    assert told == {"hospital-1": None, "hospital-2": None, OUT: reason}
    file = read_site(paths[OUT])
    refused = open_journal(file).entries("refused")
    assert [entry.body["reason"] for entry in refused] == [reason]
    assert words in str(refused[0].body["detail"])
    assert refused[0].body["asked"] == "open"
    assert not (file.state / "index.json").exists(), "no image was opened"
    assert not open_journal(file).entries("released")


def run(tmp_path: Path, study: Study, paths: dict[str, Path], roster: Roster) -> dict[str, Any]:
    checkpoint = checkpoint_path(tmp_path / "server" / "state", RUN)
    context = RunContext(
        study=study,
        run_id=RUN,
        exchange=SitesHere(paths),
        federation=federation_of(study, RUN, roster),
        checkpoint=checkpoint,
        patience_seconds=0.0,
        start_seconds=0.0,
    )
    run_study(context, engine="local")
    return dict(json.loads((checkpoint.parent / "result.json").read_text(encoding="utf-8")))
