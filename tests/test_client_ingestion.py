"""A hospital's folder becomes an index and tensors."""

import json
import stat
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import studies
import torch
from dicom_files import (
    NAME,
    OTHER_SECRET,
    SECRET,
    Hospital,
    dataset,
    gradient,
    make_image,
    make_study,
    rt_plan,
    uid,
    write,
    write_truncated,
)
from rich.console import Console

from client.data_floor import check_floors
from client.dicom_index import Index
from client.evaluation import patient_scores
from client.index_report import INDEX_NAME, render_index, summary_of
from client.ingestion import DataRefused, Ingested, ingest
from client.labels import LabelsError
from client.reasons import LabelProblem, Reason
from client.roles import Role, role_of
from client.training import Machine
from shared_models.architectures import build_model
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from shared_models.tasks.task import MISSING


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path / "hospital")


def printed(index: Index, study: Study | None = None) -> str:
    console = Console(file=StringIO(), width=300)
    console.print(render_index(index, study or make_study()))
    return console.file.getvalue()  # type: ignore[attr-defined]


def reasons(index: Index) -> dict[str, str]:
    return {file.path: file.reason.code for file in index.left_out}


def with_rubbish(hospital: Hospital) -> None:
    """Twenty good patients, and one of everything that does not belong in the folder."""
    rows = hospital.add_patients(range(20))
    write_truncated(hospital.images / "truncated.dcm", dataset(gradient(), patient="PAT-0100"))
    (hospital.images / "notes.txt").write_text("Oftering, Walburga: call back\n" * 20)
    hospital.add("plan.dcm", rt_plan(patient="PAT-0001"))
    hospital.add("other.dcm", dataset(gradient(), patient="PAT-0102", modality="MR"))
    hospital.label(
        [*rows, ("PAT-0100", "yes"), ("PAT-0102", "no"), ("STRANGER-1", "yes"), ("STRANGER-2", "no")]
    )


@pytest.mark.slow
def test_training_goes_on_with_the_rest_and_the_report_says_what_was_left_out(hospital: Hospital) -> None:
    with_rubbish(hospital)
    found = ingest(hospital.site(), make_study(), SECRET)
    index = found.index
    assert reasons(index) == {
        "truncated.dcm": "truncated",
        "notes.txt": "not-dicom",
        "plan.dcm": "not-an-image",
        "other.dcm": "other-modality",
    }
    assert index.label_problems == {LabelProblem.NO_FILE: 2}
    assert index.num_files == 24
    assert index.unusable_share == pytest.approx(4 / 24)
    assert index.num_patients() == 20
    assert index.num_patients_found == 22
    assert sum(len(patients) for patients in found.patients.values()) == 20
    check_floors(index, make_study(), hospital.site(max_unusable_share=0.2).policy)

    report = printed(index)
    assert "20 of 24 files are used: 20 of 22 patients" in report
    for reason in (Reason.TRUNCATED, Reason.NOT_DICOM, Reason.NOT_AN_IMAGE, Reason.OTHER_MODALITY):
        assert reason.sentence in report
        assert reason.remedy in report
    assert LabelProblem.NO_FILE.sentence in report

    written = json.loads((hospital.site().state / INDEX_NAME).read_text())
    assert written["summary"]["left_out"] == index.left_out_counts
    assert written["label_problems"] == {"no-file": 2}
    assert {entry["path"] for entry in written["images"] + written["left_out"]} == {
        path.name for path in hospital.images.iterdir()
    }


@pytest.mark.slow
def test_above_the_share_in_the_site_file_the_site_refuses_and_says_why(hospital: Hospital) -> None:
    with_rubbish(hospital)
    index = ingest(hospital.site(), make_study(), SECRET).index
    with pytest.raises(DataRefused) as refusal:
        check_floors(index, make_study(), hospital.site(max_unusable_share=0.1).policy)
    message = str(refusal.value)
    assert "4 of 24 files cannot be used (16.7%), policy.max_unusable_share allows 10.0%" in message
    assert "1 × not-an-image; 1 × not-dicom; 1 × other-modality" in message
    assert "index.json" in message


@pytest.mark.slow
def test_too_few_training_patients_are_refused(hospital: Hospital) -> None:
    hospital.label(hospital.add_patients(range(20)))
    index = ingest(hospital.site(), make_study(), SECRET).index
    num_training = index.num_patients(Role.TRAIN)
    check_floors(index, make_study(), hospital.site(min_patients=num_training).policy)
    with pytest.raises(
        DataRefused, match=f"{num_training} patients could train, policy.min_patients asks for 20"
    ):
        check_floors(index, make_study(), hospital.site(min_patients=20).policy)


def test_an_empty_folder_is_refused(hospital: Hospital) -> None:
    hospital.label([("PAT-0001", "yes")])
    found = ingest(hospital.site(), make_study(), SECRET)
    assert found.index.num_files == 0
    assert all(len(patients) == 0 for patients in found.patients.values())
    assert found.patients[Role.TRAIN].images.shape == (0, 1, 16, 16)
    with pytest.raises(DataRefused, match="0 of 0 files"):
        check_floors(found.index, make_study(), hospital.site(max_unusable_share=0.9).policy)


def test_a_missing_folder_is_refused_by_name(hospital: Hospital) -> None:
    hospital.label([("PAT-0001", "yes")])
    hospital.images.rmdir()
    with pytest.raises(DataRefused, match=r"images\.folder"):
        ingest(hospital.site(), make_study(), SECRET)


@pytest.mark.slow
def test_no_name_or_identifier_is_written_or_shown(hospital: Hospital) -> None:
    with_rubbish(hospital)
    site = hospital.site(max_unusable_share=0.0, min_patients=1000)
    found = ingest(site, make_study(), SECRET)
    with pytest.raises(DataRefused) as refusal:
        check_floors(found.index, make_study(), site.policy)
    told = [(site.state / INDEX_NAME).read_text(), printed(found.index), str(refusal.value), repr(found)]
    identifiers = [NAME, "Oftering", "Walburga", "STRANGER", "PAT-0", "ACC-", uid("PAT-0001", "1", "1")]
    for text in told:
        assert not [identifier for identifier in identifiers if identifier in text]
    assert stat.S_IMODE((site.state / INDEX_NAME).stat().st_mode) == 0o600


@pytest.mark.slow
def test_pseudonyms_and_order_differ_with_another_secret(hospital: Hospital) -> None:
    hospital.label(hospital.add_patients(range(10)))
    ours = ingest(hospital.site(), make_study(), SECRET).index
    theirs = ingest(hospital.site(), make_study(), OTHER_SECRET).index
    assert {entry.patient for entry in ours.images}.isdisjoint(entry.patient for entry in theirs.images)
    assert {entry.study for entry in ours.images}.isdisjoint(entry.study for entry in theirs.images)


@pytest.mark.slow
def test_the_same_folder_gives_the_same_index_and_the_same_bits(hospital: Hospital) -> None:
    with_rubbish(hospital)
    first, second = (ingest(hospital.site(), make_study(), SECRET) for _ in range(2))
    assert first.index == second.index
    for role in Role:
        assert torch.equal(first.patients[role].images[:], second.patients[role].images[:])
        assert torch.equal(first.patients[role].labels, second.patients[role].labels)


@pytest.mark.slow
def test_roles_stay_when_patients_come_and_go(hospital: Hospital) -> None:
    rows = hospital.add_patients(range(30))
    hospital.label(rows)
    before = {
        entry.patient: entry.role for entry in ingest(hospital.site(), make_study(), SECRET).index.images
    }
    for number in range(10):
        (hospital.images / f"{number:04d}.dcm").unlink()
    hospital.label([*rows[10:], *hospital.add_patients(range(30, 40))])
    after = {
        entry.patient: entry.role for entry in ingest(hospital.site(), make_study(), SECRET).index.images
    }
    assert len(before.keys() & after.keys()) == 20
    assert all(before[patient] == after[patient] for patient in before.keys() & after.keys())


def several_images(hospital: Hospital) -> None:
    """Two patients with two studies of two images each; the picture's grey value tells which one it is."""
    for patient in ("A", "B"):
        for study in ("1", "2"):
            for image in ("1", "2"):
                grey = 100 * (patient == "B") + 10 * int(study) + int(image)
                pixels = np.full((16, 16), grey, dtype="uint8")
                made = dataset(pixels, patient=patient, study=study, image=image)
                hospital.add(f"{study}/{patient}{image}.dcm", made)


def labels_by_grey(found: Ingested) -> dict[int, int]:
    return {
        round(float(image.mean()) * 255): int(label)
        for patients in found.patients.values()
        for image, label in zip(patients.images, patients.labels, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "rows", "expected"),
    [
        (
            "PatientID",
            [("A", "yes"), ("B", "no")],
            {11: 1, 12: 1, 21: 1, 22: 1, 111: 0, 112: 0, 121: 0, 122: 0},
        ),
        ("AccessionNumber", [("ACC-A-1", "yes"), ("ACC-B-2", "no")], {11: 1, 12: 1, 121: 0, 122: 0}),
        ("StudyInstanceUID", [(uid("A", "1"), "yes"), (uid("A", "2"), "no")], {11: 1, 12: 1, 21: 0, 22: 0}),
        ("SOPInstanceUID", [(uid("A", "1", "2"), "yes"), (uid("B", "2", "1"), "no")], {12: 1, 121: 0}),
    ],
)
def test_labels_may_name_patients_studies_or_images(
    hospital: Hospital, key: str, rows: list[tuple[str, str]], expected: dict[int, int]
) -> None:
    several_images(hospital)
    hospital.label(rows, header=(key, "finding"))
    found = ingest(hospital.site(key=key), make_study(), SECRET)
    assert labels_by_grey(found) == expected
    assert len(found.index.left_out) == 8 - len(expected)
    assert {file.reason for file in found.index.left_out} <= {Reason.NO_LABEL}
    assert not found.index.label_problems


@pytest.mark.slow
def test_the_images_of_one_patient_lie_side_by_side(hospital: Hospital) -> None:
    several_images(hospital)
    hospital.label([("A", "yes"), ("B", "no")])
    found = ingest(hospital.site(), make_study(), SECRET)
    assert found.index.num_studies == 4
    seen = {}
    for role, patients in found.patients.items():
        assert list(patients.pseudonyms) == sorted(patients.pseudonyms)
        assert patients.images.dtype == torch.float32
        assert patients.labels.dtype == torch.int64
        assert patients.first_image.dtype == np.int64
        assert patients.first_image[-1] == len(patients.images) == len(patients.labels)
        for position, pseudonym in enumerate(patients.pseudonyms):
            greys = [
                round(float(patients.images[image].mean()) * 255) for image in patients.images_of(position)
            ]
            seen[pseudonym] = (role, greys)
    for patient, greys in (("A", [11, 12, 21, 22]), ("B", [111, 112, 121, 122])):
        role = role_of(patient, SECRET, make_study().patients)
        assert seen[SECRET.pseudonym("patient", patient)] == (role, greys)


@pytest.mark.slow
def test_a_patient_outside_the_set_is_refused(hospital: Hospital) -> None:
    hospital.label(hospital.add_patients(range(3)))
    patients = ingest(hospital.site(), make_study(), SECRET).patients[Role.TRAIN]
    with pytest.raises(ValueError, match="must lie in"):
        patients.images_of(len(patients))


@pytest.mark.slow
def test_contradictory_labels_leave_out_all_images_of_the_key(hospital: Hospital) -> None:
    several_images(hospital)
    hospital.label([("A", "yes"), ("A", "no"), ("B", "no")])
    index = ingest(hospital.site(), make_study(), SECRET).index
    assert index.left_out_counts == {"label-contradictory": 4}
    assert index.label_problems == {LabelProblem.CONTRADICTORY: 1}
    assert index.num_patients() == 1


@pytest.mark.slow
def test_a_patient_has_one_role_only(hospital: Hospital) -> None:
    several_images(hospital)
    hospital.label(
        [
            ("ACC-A-1", "yes", "train"),
            ("ACC-A-2", "yes", "test"),
            ("ACC-B-1", "no", "test"),
            ("ACC-B-2", "no", "test"),
        ],
        header=("AccessionNumber", "finding", "role"),
    )
    found = ingest(hospital.site(key="AccessionNumber"), make_study(roles="column"), SECRET)
    assert found.index.left_out_counts == {"role-contradictory": 4}
    assert {role: len(patients) for role, patients in found.patients.items()} == {
        Role.TRAIN: 0,
        Role.VALIDATION: 0,
        Role.TEST: 1,
    }
    assert len(found.patients[Role.TEST].images) == 4


@pytest.mark.slow
def test_a_patient_without_a_role_is_left_out(hospital: Hospital) -> None:
    several_images(hospital)
    hospital.label([("A", "yes", ""), ("B", "no", "validation")], header=("PatientID", "finding", "role"))
    index = ingest(hospital.site(), make_study(roles="column"), SECRET).index
    assert index.left_out_counts == {"role-missing": 4}
    assert index.label_problems == {LabelProblem.UNKNOWN_ROLE: 1}
    assert index.num_patients(Role.VALIDATION, 0) == 1


@pytest.mark.slow
def test_a_patient_with_any_positive_image_counts_as_positive(hospital: Hospital) -> None:
    several_images(hospital)
    rows = [("ACC-A-1", "yes"), ("ACC-A-2", "no"), ("ACC-B-1", "no")]
    hospital.label(rows, header=("AccessionNumber", "finding"))
    index = ingest(hospital.site(key="AccessionNumber"), make_study(), SECRET).index
    assert (index.num_patients(label=0), index.num_patients(label=1)) == (1, 1)


@pytest.mark.slow
def test_of_two_files_with_one_identifier_the_first_usable_one_is_used(hospital: Hospital) -> None:
    made = dataset(gradient())
    write_truncated(hospital.images / "a.dcm", made)
    for name in ("b.dcm", "c.dcm"):
        write(hospital.images / name, made)
    made.StudyDescription = "the same image again"
    write(hospital.images / "d.dcm", made)
    hospital.label([("PAT-0001", "yes")])
    index = ingest(hospital.site(), make_study(), SECRET).index
    assert [entry.path for entry in index.images] == ["b.dcm"]
    assert reasons(index) == {"a.dcm": "truncated", "c.dcm": "duplicate-file", "d.dcm": "duplicate"}


@pytest.mark.slow
def test_a_file_whose_pixels_cannot_be_decoded_is_in_the_index(hospital: Hospital) -> None:
    rows = hospital.add_patients(range(5))
    made = dataset(gradient())
    made.compress("1.2.840.10008.1.2.5", encoding_plugin="pydicom")
    made.PixelData = made.PixelData[:16] + b"\xff" * (len(made.PixelData) - 24) + made.PixelData[-8:]
    hospital.add("bad.dcm", made)
    hospital.label([*rows, ("PAT-0001", "yes")][1:])
    index = ingest(hospital.site(), make_study(), SECRET).index
    assert reasons(index)["bad.dcm"] == "undecodable"


@pytest.mark.slow
def test_missing_identifiers_are_a_reason(hospital: Hospital) -> None:
    hospital.add("none.dcm", dataset(gradient(), patient=""))
    hospital.add("accession.dcm", dataset(gradient(), AccessionNumber=""))
    hospital.label([("ACC-PAT-0001-1", "yes")], header=("AccessionNumber", "finding"))
    index = ingest(hospital.site(key="AccessionNumber"), make_study(), SECRET).index
    assert index.left_out_counts == {"missing-identifier": 2}
    assert index.label_problems == {LabelProblem.NO_FILE: 1}


@pytest.mark.slow
def test_images_without_a_window_are_counted_where_windows_are_wanted(hospital: Hospital) -> None:
    hospital.label(hospital.add_patients(range(3)))
    hospital.add(
        "window.dcm",
        dataset(gradient(high=9), image="2", patient="PAT-0001", WindowCenter=9, WindowWidth=9),
    )
    study = make_study(image=make_image(intensity="window"))
    index = ingest(hospital.site(), study, SECRET).index
    assert sum(entry.has_window for entry in index.images) == 1
    assert "3 images have no window" in printed(index, study)
    assert "no window" not in printed(index)


@pytest.mark.slow
def test_a_labels_file_inside_the_images_folder_is_not_counted(hospital: Hospital) -> None:
    rows = hospital.add_patients(range(3))
    hospital.labels = hospital.images / "labels.csv"
    hospital.label(rows)
    index = ingest(hospital.site(), make_study(), SECRET).index
    assert index.num_files == 3
    assert index.unusable_share == 0.0


@pytest.mark.slow
def test_linked_folders_are_reported_and_not_entered(hospital: Hospital) -> None:
    hospital.label(hospital.add_patients(range(3)))
    (hospital.images / "loop").symlink_to(hospital.images)
    assert reasons(ingest(hospital.site(), make_study(), SECRET).index) == {"loop": "not-a-file"}


@pytest.mark.slow
def test_progress_counts_every_file(hospital: Hospital) -> None:
    with_rubbish(hospital)
    calls: list[tuple[int, int]] = []
    ingest(hospital.site(), make_study(), SECRET, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(number, 24) for number in range(1, 25)]


@pytest.mark.slow
def test_a_labels_file_that_cannot_be_used_leaves_the_old_index_alone(hospital: Hospital) -> None:
    hospital.label(hospital.add_patients(range(3)))
    ingest(hospital.site(), make_study(), SECRET)
    path = hospital.site().state / INDEX_NAME
    before = path.read_bytes()
    hospital.labels.write_text("PatientID,other\nPAT-0001,yes\n")
    with pytest.raises(LabelsError):
        ingest(hospital.site(), make_study(), SECRET)
    assert path.read_bytes() == before


# Several classes and findings


def study_with(table: str) -> Study:
    task = studies.make_study({studies.ONE_QUESTION: table}).task
    return make_study().model_copy(update={"task": task})


@pytest.mark.slow
def test_patients_of_each_class_are_counted_by_name_and_the_last_class_counts(hospital: Hospital) -> None:
    several_images(hospital)
    rows = [("ACC-A-1", "opacity"), ("ACC-A-2", "mass"), ("ACC-B-1", "clear")]
    hospital.label(rows, header=("AccessionNumber", "finding"))
    study = study_with(studies.THREE_CLASSES)
    found = ingest(hospital.site(key="AccessionNumber"), study, SECRET)
    index = found.index
    assert [index.num_patients(label=label) for label in range(3)] == [1, 0, 1]
    counted = [json.loads(json.dumps(summary_of(index, study)))["labels"][role.value] for role in Role]
    assert {name: sum(each[name] for each in counted) for name in counted[0]} == {
        "clear lungs": 1,
        "opacity": 0,
        "mass": 1,
    }
    shown = printed(index)
    assert all(name in shown for name in ("Class", "clear lungs", "mass", "Validation"))
    labels = torch.cat([patients.labels for patients in found.patients.values()])
    assert sorted(labels.unique().tolist()) == [0, 1, 2]


@pytest.mark.slow
def test_findings_are_a_row_of_labels_and_patients_are_counted_with_without_and_not_known(
    hospital: Hospital,
) -> None:
    several_images(hospital)
    rows = [("ACC-A-1", "opacity", ""), ("ACC-A-2", "clear", "0"), ("ACC-B-1", "maybe", "1")]
    hospital.label(rows, header=("AccessionNumber", "finding", "effusion"))
    found = ingest(hospital.site(key="AccessionNumber"), study_with(studies.TWO_FINDINGS), SECRET)
    index = found.index
    opacity, effusion = 0, 1
    assert [index.num_patients(None, value, opacity) for value in (MISSING, 0, 1)] == [1, 0, 1]
    assert [index.num_patients(None, value, effusion) for value in (MISSING, 0, 1)] == [0, 1, 1]
    assert index.num_patients() == 2
    assert index.label_problems == {LabelProblem.EMPTY_FINDING: 1, LabelProblem.UNKNOWN_FINDING: 1}
    assert index.finding_problems["opacity"] == {LabelProblem.UNKNOWN_FINDING: 1}

    labels = torch.cat([patients.labels for patients in found.patients.values()])
    assert labels.shape == (len(index.images), 2)
    assert labels.dtype == torch.int64
    shown = printed(index)
    assert "Patients with / without / not known" in shown
    assert "Cells unknown" in shown
    written = json.loads((hospital.site().state / INDEX_NAME).read_text(encoding="ascii"))
    assert written["finding_problems"] == {
        "opacity": {"unknown-finding": 1},
        "effusion": {"empty-finding": 1},
    }
    assert sum(sum(of_role.values()) for of_role in written["summary"]["patients"].values()) == 2


@pytest.mark.slow
def test_an_image_of_which_no_finding_is_known_is_left_out(hospital: Hospital) -> None:
    several_images(hospital)
    hospital.label([("A", "", ""), ("B", "clear", "")], header=("PatientID", "finding", "effusion"))
    index = ingest(hospital.site(), study_with(studies.TWO_FINDINGS), SECRET).index
    assert set(index.left_out_counts) == {"label-empty"}
    assert index.num_patients() == 1


@pytest.mark.slow
@pytest.mark.parametrize("table", [studies.ONE_QUESTION, studies.THREE_CLASSES, studies.TWO_FINDINGS])
def test_a_role_without_patients_is_evaluated_as_nothing(hospital: Hospital, table: str) -> None:
    hospital.label([("PAT-0001", "clear", "1", "train")], header=("PatientID", "finding", "effusion", "role"))
    hospital.add_patients([1])
    patients = make_study(roles="column").patients
    study = study_with(table).model_copy(update={"patients": patients})
    task, found = task_of(study), ingest(hospital.site(), study, SECRET)
    nobody = found.patients[Role.TEST]
    assert len(found.patients[Role.TRAIN]) == 1
    assert nobody.labels.shape == (0, *task.label_shape)
    machine = Machine(device=torch.device("cpu"), physical_batch=8, mixed_precision=False)
    scores, labels = patient_scores(build_model(study), nobody, task=task, machine=machine)
    assert task.statistics(scores, labels).tolist() == [0] * task.num_statistics
