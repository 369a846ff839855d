"""Which images are good enough, whose they are, and below what a site does not train."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import NAME, SECRET, Hospital, dataset, gradient, make_study, uid
from hypothesis import given
from hypothesis import strategies as st
from ingest_runs import CountingReader, folder_of, images_of, kept, killed_at, run
from series_files import volume_study, write_series

from client.data_floor import check_floors, floor_refusals
from client.dicom_index import Index
from client.image_conflicts import Candidate, Identities, conflicts
from client.ingestion import DataRefused, ingest
from client.person import Person
from client.quality_file import SiteQuality
from client.quality_notes import quality_notes
from client.roles import Role
from client.scan_memory import SCAN_NAME, ScanMemory
from client.site_file import SiteFile
from shared_models.quality import Quality
from shared_models.study import Study


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path / "hospital")


def picture(number: int) -> np.ndarray:
    """A picture that no other number has."""
    pixels = gradient()
    pixels[1, :2] = divmod(number, 256)
    return pixels


def asking(**quality: object) -> Study:
    return make_study(quality=Quality.model_validate(quality))


def careful(hospital: Hospital, **quality: object) -> SiteFile:
    return hospital.site().model_copy(update={"quality": SiteQuality.model_validate(quality)})


def indexed(hospital: Hospital, study: Study | None = None, **quality: object) -> Index:
    site = careful(hospital, **quality)
    return ingest(site, study or asking(), SECRET, make_reader=CountingReader).index


def reasons(index: Index) -> dict[str, str]:
    return {file.path: file.reason.code for file in index.left_out}


# One image by itself


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize(
    ("quality", "attributes", "reason"),
    [
        ({"views": ["PA", "AP"]}, {"ViewPosition": "PA"}, None),
        ({"views": ["PA", "AP"]}, {"ViewPosition": "LL"}, "other-view"),
        ({"views": ["PA", "AP"]}, {"ViewPosition": "Walburga"}, "other-view"),
        ({"views": ["PA"]}, {}, None),
        ({"views": ["PA"], "unstated": "refuse"}, {}, "other-view"),
        ({"body_parts": ["CHEST"]}, {"BodyPartExamined": "CHEST"}, None),
        ({"body_parts": ["CHEST"]}, {"BodyPartExamined": "HAND"}, "other-body-part"),
        ({"body_parts": ["CHEST"], "unstated": "refuse"}, {"BodyPartExamined": ""}, "other-body-part"),
        ({"photometric": ["MONOCHROME2"]}, {}, None),
        ({"photometric": ["MONOCHROME1"]}, {}, "other-photometric"),
        ({"min_rows": 16, "max_rows": 16, "min_columns": 16, "max_columns": 16}, {}, None),
        ({"min_rows": 17}, {}, "wrong-size"),
        ({"max_rows": 15}, {}, "wrong-size"),
        ({"min_columns": 17}, {}, "wrong-size"),
        ({"max_columns": 15}, {}, "wrong-size"),
        ({}, {"BurnedInAnnotation": "YES"}, "burned-in"),
        ({}, {"BurnedInAnnotation": "NO"}, None),
        ({}, {}, None),
        ({"burned_in": "use"}, {"BurnedInAnnotation": "YES"}, None),
        ({"burned_in": "require-no"}, {"BurnedInAnnotation": "NO"}, None),
        ({"burned_in": "require-no"}, {}, "burned-in"),
        ({"burned_in": "require-no"}, {"BurnedInAnnotation": "perhaps"}, "burned-in"),
    ],
)
def test_what_a_header_says_decides_as_the_study_asks(
    hospital: Hospital, quality: dict[str, object], attributes: dict[str, str], reason: str | None
) -> None:
    hospital.add("a.dcm", dataset(picture(1), **attributes))
    hospital.label([("PAT-0001", "yes")])
    index = indexed(hospital, asking(**quality))
    assert reasons(index) == ({} if reason is None else {"a.dcm": reason})
    assert not any("Walburga" in file.detail for file in index.left_out)


def test_what_a_header_decides_costs_no_decoding(hospital: Hospital) -> None:
    hospital.add("pa.dcm", dataset(picture(1), ViewPosition="PA"))
    hospital.add("ll.dcm", dataset(picture(2), image="2", ViewPosition="LL"))
    hospital.label([("PAT-0001", "yes")])
    _, reader, _ = run(hospital, asking(views=["PA"]))
    assert reader.pixels == ["pa.dcm"]


@pytest.mark.parametrize(
    ("pixels", "quality", "reason"),
    [
        (np.full((16, 16), 7, np.uint8), {}, "blank"),
        (np.full((16, 16), 7, np.uint8), {"blank": "use"}, None),
        (np.repeat([0, 200], 128).reshape(16, 16).astype(np.uint8), {}, None),
        (np.repeat([0, 200], 128).reshape(16, 16).astype(np.uint8), {"max_saturated_share": 0.5}, None),
        (
            np.repeat([0, 200], 128).reshape(16, 16).astype(np.uint8),
            {"max_saturated_share": 0.49},
            "saturated",
        ),
        (gradient(), {"max_saturated_share": 0.01}, None),
    ],
)
def test_blank_and_saturated_images_are_told_by_their_stored_values(
    hospital: Hospital, pixels: np.ndarray, quality: dict[str, object], reason: str | None
) -> None:
    hospital.add("a.dcm", dataset(pixels))
    hospital.label([("PAT-0001", "yes")])
    for _ in range(2):  # as it is read, and as it is remembered
        index = indexed(hospital, asking(**quality))
        assert reasons(index) == ({} if reason is None else {"a.dcm": reason})


def test_two_studies_that_differ_in_quality_share_what_was_prepared(hospital: Hospital) -> None:
    for number in range(3):
        view = ("PA", "AP", "LL")[number]
        hospital.add(f"{number}.dcm", dataset(picture(number), image=str(number), ViewPosition=view))
    hospital.label([("PAT-0001", "yes")])
    narrow, wide = asking(views=["PA"]), asking(views=["PA", "AP"])
    first, _, _ = run(hospital, narrow)
    second, reader, _ = run(hospital, wide)
    assert (reader.headers, reader.pixels) == (["1.dcm"], ["1.dcm"])
    again, reader, _ = run(hospital, narrow)
    assert reader.headers == []
    assert again.index == first.index
    assert [entry.path for entry in second.index.images] == ["0.dcm", "1.dcm"]


# The same image twice


def test_copies_are_told_by_their_bytes_their_identifier_and_their_pixels(hospital: Hospital) -> None:
    made = dataset(picture(1))
    hospital.add("a.dcm", made)
    shutil.copy(hospital.images / "a.dcm", hospital.images / "b.dcm")
    hospital.add("c.dcm", dataset(picture(2)))
    hospital.add("d.dcm", dataset(picture(1), image="2"))
    compressed = dataset(picture(1), image="3")
    compressed.compress("1.2.840.10008.1.2.5", encoding_plugin="pydicom", generate_instance_uid=False)
    hospital.add("e.dcm", compressed)
    hospital.add("f.dcm", dataset(picture(3), image="4"))
    hospital.label([("PAT-0001", "yes")])
    for _ in range(2):
        assert reasons(indexed(hospital)) == {
            "b.dcm": "duplicate-file",
            "c.dcm": "duplicate",
            "d.dcm": "duplicate-pixels",
            "e.dcm": "duplicate-pixels",
        }


def test_the_copy_is_used_once_the_first_is_gone(hospital: Hospital) -> None:
    hospital.add("a.dcm", dataset(picture(1)))
    shutil.copy(hospital.images / "a.dcm", hospital.images / "b.dcm")
    hospital.label([("PAT-0001", "yes")])
    first, _, _ = run(hospital)
    pictures = images_of(first)
    (hospital.images / "a.dcm").unlink()
    second, _, _ = run(hospital)
    assert [entry.path for entry in second.index.images] == ["b.dcm"]
    assert images_of(second) == pictures
    third, reader, _ = run(hospital)
    assert reader.headers == []
    assert third.index == second.index


@pytest.mark.slow
def test_equal_pixels_with_contradictory_labels_are_all_left_out(hospital: Hospital) -> None:
    for image in ("1", "2", "3"):
        hospital.add(f"{image}.dcm", dataset(picture(int(image) // 3), image=image))
    rows = [
        (uid("PAT-0001", "1", "1"), "yes"),
        (uid("PAT-0001", "1", "2"), "no"),
        (uid("PAT-0001", "1", "3"), "no"),
    ]
    hospital.label(rows, header=("SOPInstanceUID", "finding"))
    index = ingest(hospital.site(key="SOPInstanceUID"), asking(), SECRET).index
    assert reasons(index) == {"1.dcm": "label-contradictory", "2.dcm": "label-contradictory"}


# Whose image it is


def test_the_same_pixels_under_two_patient_ids_are_left_out_for_both(hospital: Hospital) -> None:
    for number, patient in enumerate(("A", "B", "C")):
        hospital.add(f"{patient}.dcm", dataset(picture(number // 2), patient=patient))
    hospital.label([(patient, "yes") for patient in "ABC"])
    index = indexed(hospital)
    assert reasons(index) == {"A.dcm": "two-patients", "B.dcm": "two-patients"}
    assert index.tally.num_shared == 2
    assert any("Images of 2 Patient IDs" in note for note in quality_notes(index, asking()))
    assert reasons(indexed(hospital, asking(shared_pixels="use"))) == {}


def test_one_instance_under_two_patient_ids_is_left_out_for_both_without_looking_at_pixels(
    hospital: Hospital,
) -> None:
    hospital.add("a.dcm", dataset(picture(1), patient="A"))
    hospital.add("b.dcm", dataset(picture(1), patient="B", SOPInstanceUID=uid("A", "1", "1")))
    hospital.add("c.dcm", dataset(picture(2), patient="C"))
    hospital.label([(patient, "yes") for patient in "ABC"])
    assert reasons(indexed(hospital)) == {"a.dcm": "two-patients", "b.dcm": "two-patients"}
    hospital.label([(patient, "yes") for patient in "AC"])
    assert reasons(indexed(hospital)) == {"a.dcm": "two-patients", "b.dcm": "no-label"}


def test_the_same_volume_under_two_patient_ids_is_left_out_for_both_with_all_files(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path / "volumes")
    for patient, high in (("A", 300.0), ("B", 300.0), ("C", 200.0)):
        write_series(hospital.images / patient, patient=patient, high=high, shape=(4, 12, 12))
    hospital.label([(patient, "yes") for patient in "ABC"])
    study = volume_study(quality=Quality())
    index = ingest(hospital.site(), study, SECRET, make_reader=CountingReader).index
    assert [entry.path.partition("/")[0] for entry in index.images] == ["C"]
    assert index.left_out_counts == {"two-patients": 8}
    assert index.tally.num_shared == 2


def test_blank_images_are_no_evidence_that_two_patients_are_one(hospital: Hospital) -> None:
    for patient in "AB":
        hospital.add(f"{patient}.dcm", dataset(np.full((16, 16), 9, np.uint8), patient=patient))
    hospital.label([("A", "yes"), ("B", "no")])
    assert reasons(indexed(hospital, asking(blank="use"))) == {}


def somebody(name: str = "Oftering^Walburga", birth: str = "19510203", sex: str = "F") -> dict[str, str]:
    return {"PatientName": name, "PatientBirthDate": birth, "PatientSex": sex}


def test_one_person_under_two_patient_ids_is_counted_and_left_out_where_the_site_says_so(
    hospital: Hospital,
) -> None:
    hospital.add("a.dcm", dataset(picture(1), patient="A", **somebody()))
    hospital.add("b.dcm", dataset(picture(2), patient="B", **somebody("WALBURGA, oftering")))
    hospital.add("c.dcm", dataset(picture(3), patient="C", **somebody(birth="19510204")))
    hospital.label([(patient, "yes") for patient in "ABC"])
    index = indexed(hospital)
    assert reasons(index) == {}
    assert index.tally.num_several_ids == 1
    assert any(
        "1 person seems to have several Patient IDs" in note for note in quality_notes(index, asking())
    )
    assert reasons(indexed(hospital, patient_conflicts="refuse")) == {"a.dcm": "two-ids", "b.dcm": "two-ids"}


def test_a_placeholder_is_no_person(hospital: Hospital) -> None:
    people = [
        somebody("ANON"),
        somebody("Anonymous^1"),
        somebody(""),
        somebody("Xx"),
        somebody("Unknown^Patient"),
    ]
    people += [somebody(birth=""), somebody(birth="19000101"), somebody(sex=""), somebody(sex="O")]
    for number, person in enumerate(people * 2):
        hospital.add(f"{number}.dcm", dataset(picture(number), patient=f"P{number}", **person))
    for number in range(20, 26):
        hospital.add(
            f"{number}.dcm", dataset(picture(number), patient=f"P{number}", **somebody("Study^Subject"))
        )
    hospital.label([("P1", "yes")])
    index = indexed(hospital, patient_conflicts="refuse")
    assert index.tally.num_several_ids == 0
    assert index.tally.num_contradictory == 0


@pytest.mark.parametrize("other", [{"birth": "19990101"}, {"sex": "M"}])
def test_one_patient_id_with_two_births_or_sexes_is_counted_and_left_out_where_the_site_says_so(
    hospital: Hospital, other: dict[str, str]
) -> None:
    hospital.add("a.dcm", dataset(picture(1), **somebody()))
    hospital.add("b.dcm", dataset(picture(2), image="2", **somebody(**other)))
    hospital.add("c.dcm", dataset(picture(3), image="3", PatientSex="O", PatientBirthDate=""))
    hospital.add("d.dcm", dataset(picture(4), patient="D", **somebody("Another^One")))
    hospital.label([("PAT-0001", "yes"), ("D", "yes")])
    index = indexed(hospital)
    assert reasons(index) == {}
    assert index.tally.num_contradictory == 1
    left_out = reasons(indexed(hospital, patient_conflicts="refuse"))
    assert left_out == dict.fromkeys(("a.dcm", "b.dcm", "c.dcm"), "patient-conflict")


def test_a_person_is_remembered_by_keyed_hashes_that_tell_nothing_across_patient_ids(
    hospital: Hospital,
) -> None:
    first = Person.of(somebody()).pseudonyms("A", SECRET)
    second = Person.of(somebody()).pseudonyms("B", SECRET)
    assert first["person"] == second["person"]
    assert first["birth"] != second["birth"]
    assert first["sex"] != second["sex"]
    assert "1951" not in repr(Person.of(somebody()))
    hospital.add("a.dcm", dataset(picture(1), **somebody()))
    hospital.label([("PAT-0001", "yes")])
    run(hospital)
    content = (folder_of(hospital) / SCAN_NAME).read_bytes().lower()
    assert not [name for name in ("oftering", "walburga", "19510203") if name.encode() in content]


class BrokenNames(CountingReader):
    """Says what no header can say of a person."""

    def header(self, path, image):
        header = super().header(path, image)
        object.__setattr__(header, "person", {**somebody("\ud800" * 500), "PatientSex": "M\0"})
        return header


def test_a_name_that_is_no_text_costs_nothing_but_the_comparison(hospital: Hospital) -> None:
    hospital.add("a.dcm", dataset(picture(1)))
    hospital.label([("PAT-0001", "yes")])
    index = ingest(hospital.site(), asking(), SECRET, make_reader=BrokenNames).index
    assert len(index.images) == 1


# Laws of what only all files together show

WHO = st.sampled_from("ABC")
CANDIDATES = st.lists(
    st.tuples(WHO, st.integers(0, 1), st.sampled_from(("", "x", "y", "z")), st.booleans()), max_size=12
).map(
    lambda found: [
        Candidate(path=f"{number:02d}", patient=who, label=label, pixels=pixels, shared=shared)
        for number, (who, label, pixels, shared) in enumerate(found)
    ]
)
CAREFUL = st.sampled_from((SiteQuality(), SiteQuality(patient_conflicts="refuse")))
SHARED = st.sampled_from((Quality(), Quality(shared_pixels="use")))


@pytest.mark.slow
@given(CANDIDATES, st.randoms(), CAREFUL, SHARED)
def test_the_order_in_which_files_come_decides_nothing(candidates, random, site, study) -> None:
    identities = Identities()
    identities.add({"PatientID": "A", "person": "p"})
    identities.add({"PatientID": "B", "person": "p", "birth": "b"})
    identities.add({"PatientID": "B", "birth": "c"})
    shuffled = list(candidates)
    random.shuffle(shuffled)
    found = conflicts(candidates, identities, study, site)
    assert conflicts(shuffled, identities, study, site) == found
    if site.patient_conflicts == "refuse":
        assert {image.path for image in candidates if image.patient in "AB"} <= set(found)


@given(CANDIDATES, SHARED)
def test_of_the_images_that_are_used_no_two_of_a_patient_and_none_of_two_patients_have_the_same_pixels(
    candidates, study
) -> None:
    found = conflicts(candidates, Identities(), study, SiteQuality())
    used = [image for image in candidates if image.path not in found]
    seen = [(image.patient, image.pixels) for image in used if image.pixels]
    assert len(seen) == len(set(seen))
    if study.shared_pixels == "refuse":
        assert not [image for image in used if image.shared]
        pixels = [image.pixels for image in used if image.pixels]
        assert len(pixels) == len(set(pixels))
    for image in candidates:  # nothing is left out without another one that says why
        if image.path in found and not image.shared:
            twins = [one for one in candidates if one.pixels == image.pixels and one.path != image.path]
            assert image.pixels
            assert twins


# Whatever is remembered


@pytest.mark.slow
def test_with_every_rule_at_work_a_second_run_and_another_number_of_readers_find_the_same(
    hospital: Hospital,
) -> None:
    rows = []
    for number in range(40):
        patient = f"P{number % 23:02d}"
        person = somebody(f"Name{number % 19}^X", f"195{number % 7}0101", "FM"[number % 3 == 0])
        made = dataset(picture(number % 31), patient=patient, image=str(number % 37), **person)
        made.ViewPosition = ("PA", "AP", "LL")[number % 3]
        made.BurnedInAnnotation = "YES" if number % 11 == 0 else "NO"
        hospital.add(f"{number % 4}/{number}.dcm", made)
        rows.append((patient, "yes" if number % 2 else "no"))
    shutil.copy(hospital.images / "1" / "1.dcm", hospital.images / "copy.dcm")
    hospital.label(sorted(dict(rows).items()))
    study = asking(views=["PA", "AP"])
    found = []
    for num_readers in (1, 4, 4):
        site = careful(hospital, patient_conflicts="refuse")
        site = site.model_copy(
            update={"compute": site.compute.model_copy(update={"num_readers": num_readers})}
        )
        found.append(ingest(site, study, SECRET))
        if num_readers == 1:
            shutil.rmtree(site.state)
    assert found[0].index == found[1].index == found[2].index
    assert images_of(found[0]) == images_of(found[2])
    assert len(set(reasons(found[0].index).values())) >= 4, reasons(found[0].index)


@pytest.mark.thorough
def test_killed_at_any_moment_with_every_rule_at_work_the_next_run_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    study = asking(views=["PA", "AP"], max_saturated_share=0.4)
    whole = Hospital(tmp_path / "whole")
    pictures = [picture(1), picture(1), np.full((16, 16), 3, np.uint8), picture(2), picture(2), picture(3)]
    for number, pixels in enumerate(pictures):
        patient, view = f"P{number // 2}", "LL" if number == 5 else "PA"
        whole.add(f"{number}.dcm", dataset(pixels, patient=patient, image=str(number), ViewPosition=view))
    shutil.copy(whole.images / "0.dcm", whole.images / "copy.dcm")
    whole.label([(f"P{number}", "yes") for number in range(3)])
    first, _, _ = run(whole, study, checkpoint_seconds=0.0)
    assert set(reasons(first.index).values()) >= {"two-patients", "blank", "other-view", "duplicate-file"}
    expected, event, hospital = kept(whole), 1, Hospital(tmp_path / "killed")
    shutil.copytree(whole.images, hospital.images, dirs_exist_ok=True)
    shutil.copy(whole.labels, hospital.labels)
    while killed_at(event, lambda: run(hospital, study, checkpoint_seconds=0.0)):
        run(hospital, study)
        assert kept(hospital) == expected, f"killed at event {event}"
        shutil.rmtree(hospital.site().state)
        event += 1
    assert event > 20


def test_a_memory_of_an_older_version_is_thrown_away(hospital: Hospital) -> None:
    hospital.add("a.dcm", dataset(picture(1)))
    hospital.label([("PAT-0001", "yes")])
    run(hospital)
    memory = ScanMemory(folder_of(hospital), print)
    (record,) = memory.records.values()
    memory.close()
    assert record.header is not None
    assert record.header.identifying.patient == 1
    assert set(record.pseudonyms) > {"person", "birth", "sex"}


# Below what a site does not train


def test_below_the_studys_floor_the_site_does_not_train_and_says_so(hospital: Hospital) -> None:
    hospital.label(hospital.add_patients(range(30)))
    (hospital.images / "notes.txt").write_text("no image")
    index = indexed(hospital)
    fewest = min(index.num_patients_by_class(Role.TRAIN).values())
    policy = hospital.site().policy
    check_floors(index, asking(min_patients_per_class=fewest), policy)
    with pytest.raises(DataRefused) as refused:
        check_floors(index, asking(min_patients_per_class=fewest + 1, max_unusable_share=0.01), policy)
    assert f"{fewest} " in str(refused.value)
    assert f"quality.min_patients_per_class asks for {fewest + 1}" in str(refused.value)
    assert "the study's quality.max_unusable_share allows 1.0%" in str(refused.value)


def test_each_floor_is_told_by_itself(hospital: Hospital) -> None:
    hospital.label(hospital.add_patients(range(6)))
    index = indexed(hospital)
    study = asking(min_patients_per_class=100)
    study = study.model_copy(update={"patients": study.patients.model_copy(update={"min_training": 50})})
    told = floor_refusals(index, study, hospital.site(min_patients=40).policy)
    assert len(told) == 4
    assert "policy.min_patients asks for 40" in told[0]
    assert "patients.min_training asks for 50" in told[1]
    assert "negative patients could train" in told[2]
    assert "positive patients could train" in told[3]


def test_a_class_that_is_missing_is_told_where_no_floor_refuses(hospital: Hospital) -> None:
    rows = hospital.add_patients(range(12))
    hospital.label([(patient, "no") for patient, _ in rows])
    index = indexed(hospital)
    assert floor_refusals(index, asking(), hospital.site().policy) == ()
    assert "No training patient counts as positive" in " ".join(quality_notes(index, asking()))


# De-identified files only


def deidentified(number: int, **attributes: object) -> dict[str, object]:
    return {
        "PatientIdentityRemoved": "YES",
        "PatientName": f"SUBJECT^{number}",
        "AccessionNumber": "",
        **attributes,
    }


CASES: list[tuple[Callable[[], dict[str, object]], str | None]] = [
    (lambda: deidentified(1), None),
    (lambda: deidentified(1, PatientBirthDate="", StudyDate="20000101"), None),
    (
        lambda: deidentified(1, PatientIdentityRemoved="NO"),
        "Patient Identity Removed (0012,0062) is not YES.",
    ),
    (lambda: {}, "Patient Identity Removed (0012,0062) is not YES."),
    (
        lambda: deidentified(1, PatientAddress="1 Road"),
        "1 attributes hold values that the Basic Profile removes.",
    ),
    (
        lambda: deidentified(1, StudyDescription="x"),
        "1 attributes hold values that the Basic Profile removes.",
    ),
]


@pytest.mark.parametrize(("attributes", "detail"), CASES)
def test_a_site_may_use_de_identified_files_only(
    hospital: Hospital, attributes: Callable[[], dict[str, object]], detail: str | None
) -> None:
    hospital.add("a.dcm", dataset(picture(1), **attributes()))
    hospital.label([("PAT-0001", "yes")])
    assert reasons(indexed(hospital)) == {}
    found = indexed(hospital, identifiers="refuse").left_out
    assert [(file.reason.code, file.detail) for file in found] == (
        [] if detail is None else [("not-deidentified", detail)]
    )


def test_the_index_counts_what_headers_still_hold(hospital: Hospital) -> None:
    hospital.add("a.dcm", dataset(picture(1), **deidentified(1)))
    hospital.add("b.dcm", dataset(picture(2), image="2", PatientAddress="1 Road", BurnedInAnnotation="NO"))
    hospital.label([("PAT-0001", "yes")])
    tally = indexed(hospital).tally
    counts = {kind.field: number for kind, number in tally.kinds.items()}
    assert counts == {"patient": 2, "identifiers": 1}
    assert (tally.num_headers, tally.num_removed, tally.num_to_remove) == (2, 1, 1)
    assert tally.burned_in == {"": 1, "NO": 1}


@pytest.mark.slow
def test_who_withdrew_is_in_no_count_of_headers(hospital: Hospital) -> None:
    for number, patient in enumerate("AB"):
        hospital.add(f"{patient}.dcm", dataset(picture(number), patient=patient, PatientAddress="1 Road"))
    hospital.label([("A", "yes"), ("B", "no")])
    gone = {SECRET.pseudonym("patient", "A")}
    first = ingest(hospital.site(), asking(), SECRET, withdrawn=gone).index
    second = ingest(hospital.site(), asking(), SECRET, withdrawn=gone).index
    assert first == second
    assert first.tally.num_headers == 1


@pytest.mark.slow
def test_by_scanner_used_and_left_out_add_up_to_all_files_with_a_header(hospital: Hospital) -> None:
    for number in range(12):
        scanner = {"Manufacturer": "Maker", "ManufacturerModelName": ("One", "Two", NAME)[number % 3]}
        view = "PA" if number % 4 else "LL"
        made = dataset(picture(number), patient=f"P{number}", ViewPosition=view, **scanner)
        hospital.add(f"{number}.dcm", made)
    (hospital.images / "notes.txt").write_text("no header")
    hospital.label([(f"P{number}", "yes") for number in range(12)])
    index = indexed(hospital, asking(views=["PA"]))
    scanners = index.tally.scanners
    assert set(scanners) == {"Maker One", "Maker Two", "?"}
    assert sum(tally.num_used for tally in scanners.values()) == len(index.images) == 9
    assert sum(tally.num_files for tally in scanners.values()) == 12
    written = json.loads((hospital.site().state / "index.json").read_text())["summary"]
    assert written["scanners"]["Maker One"]["left_out"] == {"other-view": 1}
