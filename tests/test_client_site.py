"""A site decides by itself: what it answers, what it refuses, and what it has on disk before it trains."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from dicom_files import Hospital, dataset
from studies import make_study, write_study_file

from client import local_round as local_round_module
from client import site_file as site_files
from client.site import Site, open_site, result_path
from client.site_file import SiteFile, read_site
from privacy.accounting import TrainingCost
from privacy.ledger import Ledger
from shared_models.architectures import build_model
from shared_models.configuration import ConfigurationError
from shared_models.manifest import Manifest, flatten
from shared_models.messages import (
    Answer,
    Close,
    Evaluate,
    Open,
    Refusal,
    Request,
    Train,
    decode_reply,
    encode,
)
from shared_models.study import Study
from shared_models.vector import VectorLayout, from_bytes

RUN = "run-1"


def fill(hospital: Hospital, num: int = 60) -> None:
    random = np.random.default_rng(1)
    rows = []
    for number in range(num):
        positive = number % 2
        pixels = random.integers(0, 120, (20, 20)).astype("uint8")
        pixels[5:12, 5:12] += np.uint8(100 * positive)
        hospital.add(f"{number:04d}.dcm", dataset(pixels, patient=f"PAT-{number:04d}", image=str(number)))
        rows.append((f"PAT-{number:04d}", "opacity" if positive else "clear"))
    hospital.label(rows)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> Hospital:
    made = Hospital(tmp_path_factory.mktemp("hospital"))
    fill(made)
    return made


def site_file(hospital: Hospital, tmp_path: Path, **policy: object) -> SiteFile:
    file = hospital.site()
    allowed = file.policy.model_copy(update={"allow_no_privacy": True, **policy})
    return file.model_copy(update={"state": tmp_path / "state", "policy": allowed})


class Conversation:
    """Sends requests to a site as a server would, and reads its replies."""

    def __init__(self, site: Site, study: Study) -> None:
        self.site, self.study = site, study
        self.weights = flatten(build_model(study))

    def ask(self, request: Request, payload: bytes = b"") -> tuple[Answer | Refusal, bytes]:
        return decode_reply(self.site.handle(encode(request, payload)))

    def open(self, run_id: str = RUN) -> Answer | Refusal:
        manifest = Manifest.of(build_model(self.study)).hash
        return self.ask(Open(run_id=run_id, study_hash=self.study.hash, manifest_hash=manifest))[0]

    def train(self, number: int, run_id: str = RUN) -> tuple[Answer | Refusal, bytes]:
        request = Train(run_id=run_id, study_hash=self.study.hash, round=number)
        return self.ask(request, self.weights.tobytes())

    def evaluate(self) -> tuple[Answer | Refusal, bytes]:
        return self.ask(Evaluate(run_id=RUN, study_hash=self.study.hash), self.weights.tobytes())

    def close(self) -> Answer | Refusal:
        return self.ask(Close(run_id=RUN, study_hash=self.study.hash))[0]


def start(hospital: Hospital, tmp_path: Path, study: Study, **policy: object) -> Conversation:
    return Conversation(Site(site_file(hospital, tmp_path, **policy), study), study)


def reason(reply: Answer | Refusal) -> str:
    assert isinstance(reply, Refusal)
    return reply.reason


def test_a_site_trains_evaluates_and_writes_its_own_result(hospital, tmp_path) -> None:
    study = make_study()
    talk = start(hospital, tmp_path, study)
    assert isinstance(talk.open(), Answer)
    for number in (1, 2, 3):
        reply, payload = talk.train(number)
        assert isinstance(reply, Answer)
        statistics = 41 if number == 2 else 0  # the model of round 1 is validated
        layout = VectorLayout.of_study(
            study.aggregation, num_weights=len(talk.weights), num_statistics=statistics
        )
        total = from_bytes(payload, length=layout.length)
        update, weight, counts = layout.decode_sum(total)
        assert weight == 1
        assert np.abs(update).max() > 0
        assert int(counts[:40].sum()) == (0 if number != 2 else talk_patients(talk, "validation"))
    reply, payload = talk.evaluate()
    assert isinstance(reply, Answer)
    assert isinstance(talk.close(), Answer)
    own = json.loads(result_path(tmp_path / "state", RUN).read_text(encoding="utf-8"))
    assert own["patients_used"] == own["patients_found"] == 60
    assert [entry["round"] for entry in own["rounds"]] == [1, 2, 3]
    assert set(own["validation"]) == {"1", "3"}
    assert own["test"]["num_patients"] == own["patients_by_role"]["test"]


def talk_patients(talk: Conversation, role: str) -> int:
    path = result_path(talk.site._file.state, RUN)
    return int(json.loads(path.read_text(encoding="utf-8"))["patients_by_role"][role])


def test_another_study_is_refused_before_any_image_is_opened(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study())
    talk.study = make_study({"learning_rate = 0.1": "learning_rate = 0.2"})
    assert reason(talk.open()) == "study-not-approved"
    assert not (tmp_path / "state" / "index.json").exists()


def test_a_study_without_privacy_is_refused_unless_the_hospital_allows_it(hospital, tmp_path) -> None:
    assert reason(start(hospital, tmp_path, make_study(), allow_no_privacy=False).open()) == "policy"
    assert not (tmp_path / "state" / "index.json").exists()


def test_a_lifetime_cap_refuses_studies_that_promise_some_patients_nothing(hospital, tmp_path) -> None:
    cap = {"lifetime_epsilon": 10.0, "lifetime_delta": 1e-4}
    assert reason(start(hospital, tmp_path, make_study(), **cap).open()) == "policy"


def test_predictable_noise_is_refused_where_the_study_has_privacy(hospital, tmp_path) -> None:
    study = make_study(private=True)
    file = site_file(hospital, tmp_path).model_copy(update={"testing": site_files.Testing(sampling_seed=1)})
    assert reason(Conversation(Site(file, study), study).open()) == "policy"


def test_a_model_of_another_version_is_refused(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study())
    request = Open(run_id=RUN, study_hash=talk.study.hash, manifest_hash="0" * 64)
    assert reason(talk.ask(request)[0]) == "model-differs"


def test_too_few_training_patients_are_refused(hospital, tmp_path) -> None:
    study = make_study({"min_training = 1": "min_training = 1000"})
    assert reason(start(hospital, tmp_path, study).open()) == "data"


def test_a_run_that_was_not_opened_is_refused(hospital, tmp_path) -> None:
    assert reason(start(hospital, tmp_path, make_study()).train(1)[0]) == "not-open"


def test_an_identical_request_gets_the_stored_reply(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study(private=True))
    talk.open()
    first, second = talk.train(1), talk.train(1)
    assert first == second
    assert [entry.round for entry in Ledger(tmp_path / "state" / "ledger.sqlite").rounds(RUN)] == [1]


def test_the_same_round_with_another_model_is_refused_and_not_charged_again(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study(private=True))
    talk.open()
    talk.train(1)
    talk.weights = talk.weights + np.float32(0.01)
    assert reason(talk.train(1)[0]) == "round-already-attempted"
    assert len(Ledger(tmp_path / "state" / "ledger.sqlite").rounds(RUN)) == 1


def test_a_second_final_test_with_another_model_is_refused(hospital, tmp_path) -> None:
    """Each noised evaluation costs test patients; the study pays for one."""
    talk = start(hospital, tmp_path, make_study(private=True))
    talk.open()
    assert isinstance(talk.evaluate()[0], Answer)
    talk.weights = talk.weights + np.float32(0.01)
    assert reason(talk.evaluate()[0]) == "round-already-attempted"


def test_a_lost_reply_of_the_final_test_is_given_again_and_not_drawn_anew(hospital, tmp_path) -> None:
    """The server resumes: it opens the run again and repeats the test, to the same agent or a restarted one."""
    study = make_study(private=True)
    talk = start(hospital, tmp_path, study)
    talk.open()
    first = talk.evaluate()
    assert isinstance(first[0], Answer)
    talk.open()
    assert talk.evaluate() == first
    again = start(hospital, tmp_path, study)
    again.open()
    assert again.evaluate() == first


def test_the_accountant_survives_a_restart_of_the_agent(hospital, tmp_path) -> None:
    study = make_study(private=True)
    talk = start(hospital, tmp_path, study)
    talk.open()
    talk.train(1)
    first = Ledger(tmp_path / "state" / "ledger.sqlite").run(RUN)

    again = start(hospital, tmp_path, study)
    assert reason(again.train(2)[0]) == "not-open"
    assert isinstance(again.open(), Answer)
    again.weights = again.weights + np.float32(0.01)
    assert reason(again.train(1)[0]) == "round-already-attempted"
    assert isinstance(again.train(2)[0], Answer)
    ledger = Ledger(tmp_path / "state" / "ledger.sqlite")
    assert ledger.run(RUN) == first, "the noised count is drawn once a run"
    own = json.loads(result_path(tmp_path / "state", RUN).read_text(encoding="utf-8"))
    cost = ledger.training_cost(RUN)
    assert cost is not None
    assert cost.num_steps == 4
    assert own["epsilon"] == pytest.approx(
        TrainingCost(sample_rate=0.5, noise_multiplier=cost.noise_multiplier, num_steps=4).epsilon(1e-4)
    )


def test_a_model_that_does_not_fit_costs_nothing(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study(private=True))
    talk.open()
    talk.weights = talk.weights[:-1]
    assert reason(talk.train(1)[0]) == "failed"
    assert not Ledger(tmp_path / "state" / "ledger.sqlite").rounds(RUN)


def test_the_charge_stays_when_training_fails_and_the_next_round_answers(
    hospital, tmp_path, monkeypatch
) -> None:
    talk = start(hospital, tmp_path, make_study(private=True))
    talk.open()
    ledger = Ledger(tmp_path / "state" / "ledger.sqlite")
    charged = []

    def out_of_memory(*_: object, **__: object) -> None:
        charged.append([entry.round for entry in ledger.rounds(RUN)])
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(local_round_module, "train", out_of_memory)
        assert reason(talk.train(1)[0]) == "failed"
    assert charged == [[1]], "the charge is on disk before training begins"
    assert reason(talk.train(2)[0]) == "not-open"
    assert isinstance(talk.open(), Answer)
    assert isinstance(talk.train(2)[0], Answer)
    assert [entry.round for entry in ledger.rounds(RUN)] == [1, 2]


def test_a_full_disk_costs_the_local_report_and_not_the_reply(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study(private=True))
    talk.open()
    folder = result_path(tmp_path / "state", RUN).parent
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("a file where a folder should be", encoding="utf-8")
    assert isinstance(talk.train(1)[0], Answer)
    assert isinstance(talk.evaluate()[0], Answer)


def test_a_refusal_is_not_stored_as_the_reply_for_ever(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study(private=True))
    assert reason(talk.evaluate()[0]) == "not-open"
    talk.open()
    assert isinstance(talk.evaluate()[0], Answer)


def test_opening_a_run_again_keeps_the_sites_own_result(hospital, tmp_path) -> None:
    study = make_study(private=True)
    talk = start(hospital, tmp_path, study)
    talk.open()
    talk.train(1)
    talk.train(2)
    path = result_path(tmp_path / "state", RUN)
    before = json.loads(path.read_text(encoding="utf-8"))
    talk.close()
    start(hospital, tmp_path, study).open()
    assert json.loads(path.read_text(encoding="utf-8")) == before


def test_a_server_cannot_run_a_study_more_often_than_the_hospital_allows(hospital, tmp_path) -> None:
    """Without a cap, every new run id would be a fresh count, fresh noise and the study's epsilon again."""
    talk = start(hospital, tmp_path, make_study(private=True), max_runs_per_study=2)
    assert isinstance(talk.open("run-1"), Answer)
    assert isinstance(talk.open("run-2"), Answer)
    assert reason(talk.open("run-3")) == "budget"
    assert isinstance(talk.open("run-1"), Answer), "a run that was begun can be resumed"
    assert len(Ledger(tmp_path / "state" / "ledger.sqlite").runs()) == 2


@pytest.mark.parametrize("first_private", [True, False])
def test_a_run_id_cannot_be_used_again_under_another_study(hospital, tmp_path, first_private: bool) -> None:
    """The ledger's noise, or an exact count, of the first study would be taken for the second's."""
    first = start(hospital, tmp_path, make_study(private=first_private))
    assert isinstance(first.open(), Answer)
    changed = make_study({"learning_rate = 0.1": "learning_rate = 0.2"}, private=True)
    assert reason(start(hospital, tmp_path, changed).open()) == "budget"
    assert len(Ledger(tmp_path / "state" / "ledger.sqlite").runs()) == 1


def test_a_lost_training_reply_is_given_again_after_a_restart(hospital, tmp_path) -> None:
    study = make_study(private=True)
    talk = start(hospital, tmp_path, study)
    talk.open()
    first = talk.train(1)
    assert start(hospital, tmp_path, study).train(1) == first


def test_rounds_beyond_the_study_are_refused(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study(private=True))
    talk.open()
    assert reason(talk.train(4)[0]) == "budget"


def test_after_all_rounds_epsilon_is_within_the_studys_target(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study(private=True))
    talk.open()
    epsilons = []
    for number in (1, 2, 3):
        talk.train(number)
        own = json.loads(result_path(tmp_path / "state", RUN).read_text(encoding="utf-8"))
        epsilons.append(own["epsilon"])
    assert epsilons == sorted(set(epsilons)), "every round costs"
    assert 4.9 < epsilons[-1] <= 5.0


def test_a_run_that_would_pass_the_lifetime_cap_is_refused_and_an_earlier_one_counts(
    hospital, tmp_path
) -> None:
    study = make_study(private=True)
    cap = {"lifetime_epsilon": 11.0, "lifetime_delta": 1e-4, "max_runs_per_study": 9}
    first = start(hospital, tmp_path, study, **cap)
    assert isinstance(first.open(), Answer)
    for number in (1, 2, 3):
        first.train(number)
    again = start(hospital, tmp_path, study, **cap)
    assert isinstance(again.open(), Answer), "the same run is not counted twice"
    assert reason(again.open("run-2")) == "budget"
    assert Ledger(tmp_path / "state" / "ledger.sqlite").run("run-2") is None


def test_a_model_with_values_that_are_not_finite_is_refused(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study(private=True))
    talk.open()
    talk.weights[0] = np.nan
    assert reason(talk.train(1)[0]) == "failed"
    assert not Ledger(tmp_path / "state" / "ledger.sqlite").rounds(RUN)


def test_bytes_that_are_no_request_are_refused_and_the_site_goes_on(hospital, tmp_path) -> None:
    talk = start(hospital, tmp_path, make_study())
    assert reason(decode_reply(talk.site.handle(b"garbage"))[0]) == "failed"
    assert isinstance(talk.open(), Answer)


def test_the_reply_has_the_same_length_whatever_the_data(hospital, tmp_path) -> None:
    other = Hospital(tmp_path / "other")
    fill(other, num=23)
    lengths = []
    for number, made in enumerate((hospital, other)):
        talk = start(made, tmp_path / str(number), make_study(private=True))
        talk.open()
        lengths.append([len(talk.train(1)[1]), len(talk.train(2)[1]), len(talk.evaluate()[1])])
    assert lengths[0] == lengths[1]


def test_the_noised_count_and_not_the_true_one_divides_and_weighs(hospital, tmp_path) -> None:
    study = make_study({'weights = "equal"': 'weights = "patients"\nmax_patients = 500'}, private=True)
    talk = start(hospital, tmp_path, study)
    talk.open()
    _, payload = talk.train(1)
    layout = VectorLayout.of_study(study.aggregation, num_weights=len(talk.weights), num_statistics=0)
    _, weight, _ = layout.decode_sum(from_bytes(payload, length=layout.length))
    run = Ledger(tmp_path / "state" / "ledger.sqlite").run(RUN)
    assert run is not None
    assert weight == min(run.noised_count, 500)


def test_noise_is_never_reused_after_a_restart(hospital, tmp_path) -> None:
    """Two copies of one state train the same round from the same model; only the noise can differ, and does."""
    study = make_study({"sample_rate = 0.5": "sample_rate = 1.0"}, private=True)
    start(hospital, tmp_path / "first", study).open()
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    updates = []
    for name in ("first", "second"):
        talk = start(hospital, tmp_path / name, study)
        talk.open()
        _, payload = talk.train(1)
        layout = VectorLayout.of_study(study.aggregation, num_weights=len(talk.weights), num_statistics=0)
        updates.append(layout.decode_sum(from_bytes(payload, length=layout.length))[0])
    assert abs(np.corrcoef(updates[0], updates[1])[0, 1]) < 0.5
    assert np.abs(updates[0] - updates[1]).max() > 0


def test_site_toml_names_every_problem_and_its_paths_count_from_its_folder(hospital, tmp_path) -> None:
    write_study_file(tmp_path / "study.toml")
    path = tmp_path / "site.toml"
    text = (
        'name = "north"\nstudy = "study.toml"\nstate = "state"\n[images]\nfolder = "images"\n'
        '[labels]\nfile = "labels.csv"\nkey = "PatientID"\n[policy]\nmin_patients = 1\nmax_unusable_share = 0.2\n'
        "max_runs_per_study = 1\n"
    )
    path.write_text(text, encoding="utf-8")
    assert read_site(path).images.folder == tmp_path / "images"
    assert open_site(read_site(path)).status()["study"] == "test-study"
    path.write_text(text.replace("0.2", "1.2").replace('"PatientID"', '"Name"'), encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        read_site(path)
    assert "2 problems" in str(caught.value)
    assert "line 8: labels.key = 'Name'" in str(caught.value)
    assert "line 11: policy.max_unusable_share = 1.2" in str(caught.value)
