"""The page of the index: what it says, what it never says, and that hostile files cannot speak through it."""

import base64
import re
import stat
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import studies
from dicom_files import NAME, SECRET, Hospital, dataset, make_image, make_study, uid
from ingest_runs import CountingReader
from PIL import Image as Pillow
from series_files import volume_hospital, volume_study

from client.data_floor import floor_refusals
from client.dicom_index import Index
from client.file_facts import HeaderFacts
from client.image_conflicts import Identities
from client.index_page import PAGE_NAME, write_page
from client.index_tally import Counted, tally
from client.ingestion import Ingested, ingest
from client.reasons import Reason
from client.scanner_rows import MOST_SCANNERS, scanner_rows
from client.thumbnails import MAX_SIDE, Thumbnail, thumbnails
from shared_models.quality import Quality
from shared_models.study import Study

NOW = datetime(2026, 3, 10, 12, 30, tzinfo=UTC)
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path / "hospital")


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (16, 16)).astype(np.uint8)


def asking(**quality: object) -> Study:
    return make_study(quality=Quality.model_validate(quality))


def found_in(hospital: Hospital, study: Study) -> Ingested:
    return ingest(hospital.site(), study, SECRET, make_reader=CountingReader)


def page_of(hospital: Hospital, study: Study, found: Ingested, pictures: tuple[Thumbnail, ...] = ()) -> str:
    path = hospital.site().state / PAGE_NAME
    refusals = floor_refusals(found.index, study, hospital.site().policy)
    write_page(path, found.index, study, site="north", refusals=refusals, pictures=pictures, now=NOW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return path.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text that is shown."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def mixed(hospital: Hospital) -> None:
    """Patients of two scanners, some with names and dates, and one of several things that do not belong there."""
    rows = []
    for number in range(24):
        made = dataset(
            picture(number),
            patient=f"MRN-{number:04d}",
            Manufacturer="Maker",
            ManufacturerModelName=("Model-1", "Model-2")[number % 2],
            StudyDate="20190314",
            PatientBirthDate=f"1951{number % 12 + 1:02d}03",
            InstitutionName="St Elsewhere",
            BurnedInAnnotation="YES" if number == 5 else "NO",
        )
        hospital.add(f"OFTERING_WALBURGA/MRN-{number:04d}.dcm", made)
        rows.append((f"MRN-{number:04d}", "yes" if number % 2 else "no"))
    hospital.add("again.dcm", dataset(picture(1), patient="MRN-0001", image="again"))
    (hospital.images / "notes.txt").write_text("Oftering, Walburga: call back")
    hospital.label([*rows, ("STRANGER-1", "yes")])


@pytest.mark.slow
def test_the_page_says_how_many_are_usable_and_why_the_others_are_not(hospital: Hospital) -> None:
    mixed(hospital)
    found = found_in(hospital, asking())
    text = Elements(page_of(hospital, asking(), found)).text
    assert "23 of 26 files can be used" in text
    assert "Why 3 of 26 files are left out" in text
    for reason in (Reason.NOT_DICOM, Reason.BURNED_IN, Reason.DUPLICATE_PIXELS):
        assert f"1 {reason.code} {reason.sentence} {reason.remedy}" in text
    assert "Maker Model-1 12 12 100.0%" in text
    assert "Maker Model-2 12 11 91.7% burned-in" in text
    assert "(not named) 1 0 0.0% duplicate-pixels" in text
    assert (
        "staff and places physicians, operators, the institution, its departments, positions 24 of 25" in text
    )
    assert (
        "dates and times of birth, of the study, of the series, of the image, of procedures 24 of 25" in text
    )
    assert "1 say yes, 23 say no, 1 do not say" in text
    assert "No readable file of the images folder has this key." in text
    assert "16 × 16 23 100.0%" in text
    assert "not stated 23 100.0%" in text
    assert "would train" in text


def test_the_page_says_that_the_site_does_not_train_with_each_reason(hospital: Hospital) -> None:
    mixed(hospital)
    study = asking(min_patients_per_class=100, max_unusable_share=0.05)
    text = Elements(page_of(hospital, study, found_in(hospital, study))).text
    assert "With these images the site does not train" in text
    assert text.count("quality.min_patients_per_class asks for 100") == 2
    assert "the study's quality.max_unusable_share allows 5.0%" in text


def test_no_identifier_path_or_pseudonym_is_on_the_page(hospital: Hospital) -> None:
    mixed(hospital)
    study = asking()
    found = found_in(hospital, study)
    page = page_of(hospital, study, found, thumbnails(found.index, found.patients, SECRET, per_class=3))
    words = [
        *NAME.split("^"),
        "OFTERING",
        "MRN-",
        "STRANGER",
        "20190314",
        "195101",
        "Elsewhere",
        "ACC-",
        "notes.txt",
    ]
    words += [uid("MRN-0001", "1"), uid("MRN-0001", "1", "1"), "again.dcm", ".dcm", str(hospital.root)]
    words += [pseudonym for entry in found.index.images for pseudonym in (entry.patient, entry.study)]
    assert [word for word in words if word in page] == []


def test_a_hostile_scanner_label_or_title_is_text_at_most(hospital: Hospital) -> None:
    for number, maker in enumerate((EVIL, "Maker", "&amp;", "\x1b[2J")):
        made = dataset(picture(number), patient=f"P{number}", Manufacturer=maker, BodyPartExamined="CHEST")
        hospital.add(f"{number}.dcm", made)
    hospital.label(
        [("P0", "yes"), ("P1", EVIL), ("P2", "no"), ("P3", "yes")],
        header=("PatientID", "finding"),
    )
    study = asking().model_copy(update={"title": f"{EVIL}\u202e"})
    found = found_in(hospital, study)
    page = page_of(hospital, study, found, thumbnails(found.index, found.patients, SECRET, per_class=3))
    elements = Elements(page)
    assert not elements.named("script")
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in elements.named("img"))
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    assert EVIL not in page
    assert EVIL in elements.text, "the title of the study, as text"
    assert "\u202e" not in page
    assert "a name with odd characters" in page


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(hospital: Hospital) -> None:
    mixed(hospital)
    found = found_in(hospital, asking())
    page = page_of(hospital, asking(), found, thumbnails(found.index, found.patients, SECRET, per_class=2))
    elements = Elements(page)
    written = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.findall(r"https?:|//[a-z]|url\(|@import", written)
    assert not {tag for tag, _ in elements.found} & {"script", "link", "iframe", "object", "form", "base"}
    policy = next(
        meta for meta in elements.named("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_the_page_can_be_read_aloud(hospital: Hospital) -> None:
    mixed(hospital)
    found = found_in(hospital, asking())
    elements = Elements(
        page_of(hospital, asking(), found, thumbnails(found.index, found.patients, SECRET, per_class=2))
    )
    assert elements.named("html")[0]["lang"] == "en"
    assert len(elements.named("h1")) == 1
    assert all(image["alt"] for image in elements.named("img"))
    assert all(head["scope"] in ("col", "row") for head in elements.named("th"))
    assert len(elements.named("table")) == len(elements.named("thead"))


@pytest.mark.slow
def test_files_of_volumes_are_counted_as_files_and_a_volume_is_shown_by_its_middle_slice(
    tmp_path: Path,
) -> None:
    hospital, study = volume_hospital(tmp_path / "volumes"), volume_study()
    found = found_in(hospital, study)
    used, num_volumes = found.index.num_used_files, len(found.index.images)
    assert used > num_volumes > 1
    pictures = thumbnails(found.index, found.patients, SECRET, per_class=1)
    text = Elements(page_of(hospital, study, found, pictures)).text
    assert f"{used} of {found.index.num_files} files can be used, in {num_volumes} volumes" in text
    assert all(float(share) <= 100.0 for share in re.findall(r"([\d.]+)%", text))
    (first,) = shown(pictures[:1])
    middles = [volume[0, volume.shape[1] // 2] for part in found.patients.values() for volume in part.images]
    assert any(np.array_equal(np.round(middle.numpy() * 255), first) for middle in middles)


def test_classes_and_findings_are_lines_of_the_page(hospital: Hospital) -> None:
    for number in range(9):
        hospital.add(f"{number}.dcm", dataset(picture(number), patient=f"P{number}"))
    rows = [
        (f"P{number}", ("clear", "opacity", "maybe")[number % 3], "10"[number % 2]) for number in range(9)
    ]
    hospital.label(rows, header=("PatientID", "finding", "effusion"))
    study = asking_for(studies.TWO_FINDINGS)
    found = found_in(hospital, study)
    pictures = thumbnails(found.index, found.patients, SECRET, per_class=2)
    elements = Elements(page_of(hospital, study, found, pictures))
    names = found.index.num_patients_by_class()
    assert len(names) == 4
    for name, number in names.items():
        assert re.search(rf"{re.escape(name)} \d+ \d+ \d+ {number}\b", elements.text), name
    assert "opacity unknown-finding 3" in elements.text
    groups = list(dict.fromkeys(each.class_name for each in pictures))
    assert len(groups) == 4
    alt = [image["alt"] for image in elements.named("img")]
    assert [text for text in alt if str(text).startswith("Prepared image 1 of")] == [
        f"Prepared image 1 of {sum(each.class_name == name for each in pictures)} labelled {name}"
        for name in groups
    ]


def test_an_empty_folder_has_a_page_too(hospital: Hospital) -> None:
    hospital.label([("P1", "yes")])
    found = found_in(hospital, asking())
    text = Elements(page_of(hospital, asking(), found)).text
    assert "0 of 0 files can be used" in text
    assert "100.0% of the files are left out" in text
    assert "the site does not train" in text


def test_a_thousand_scanners_are_a_table_that_can_be_read(hospital: Hospital) -> None:
    files = [
        Counted(HeaderFacts(scanner=f"Maker {number}"), None if number % 2 else Reason.BLANK)
        for number in range(1000)
    ]
    index = found_in_nothing(hospital)
    index = replace(index, tally=tally(files, Identities(), []))
    shown = scanner_rows(index)
    assert len(shown) == MOST_SCANNERS + 1
    assert shown[-1].name == "(970 others)"
    assert sum(row.num_files for row in shown) == 1000
    assert sum(row.num_used for row in shown) == 500


def found_in_nothing(hospital: Hospital) -> Index:
    hospital.label([("P1", "yes")])
    return found_in(hospital, asking()).index


# Thumbnails


def shown(pictures: tuple[Thumbnail, ...]) -> list[np.ndarray]:
    content = [base64.b64decode(each.uri.removeprefix("data:image/png;base64,")) for each in pictures]
    return [np.asarray(Pillow.open(BytesIO(each))) for each in content]


def test_thumbnails_are_prepared_images_of_different_patients_and_the_same_each_time(
    hospital: Hospital,
) -> None:
    mixed(hospital)
    found = found_in(hospital, asking())
    first, second = (thumbnails(found.index, found.patients, SECRET, per_class=4) for _ in range(2))
    assert first == second
    assert [each.class_name for each in first] == ["negative"] * 4 + ["positive"] * 4
    pixels = shown(first)
    numbers = [next(n for n in range(24) if np.array_equal(picture(n), each)) for each in pixels]
    assert len(set(numbers)) == 8
    assert [number % 2 for number in numbers] == [0] * 4 + [1] * 4


def test_an_image_that_is_said_to_identify_its_patient_is_never_shown(hospital: Hospital) -> None:
    for number in range(6):
        burned_in = "YES" if number % 2 else "NO"
        hospital.add(
            f"{number}.dcm", dataset(picture(number), patient=f"P{number}", BurnedInAnnotation=burned_in)
        )
    hospital.label([(f"P{number}", "yes") for number in range(6)])
    found = found_in(hospital, asking(burned_in="use"))
    assert len(found.index.images) == 6
    pixels = shown(thumbnails(found.index, found.patients, SECRET, per_class=24))
    assert len(pixels) == 3
    assert not [number for number in (1, 3, 5) for each in pixels if np.array_equal(picture(number), each)]


def test_thumbnails_are_small_whatever_the_study_prepares(hospital: Hospital) -> None:
    large = np.random.default_rng(0).integers(0, 256, (400, 700)).astype(np.uint8)
    hospital.add("a.dcm", dataset(large))
    hospital.label([("PAT-0001", "yes")])
    found = found_in(hospital, make_study(image=make_image(rows=400, columns=700)))
    (one,) = thumbnails(found.index, found.patients, SECRET, per_class=2)
    assert (one.width, one.height) == (MAX_SIDE, 73)
    assert thumbnails(found.index, found.patients, SECRET, per_class=0) == ()


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed(hospital)
    found = found_in(hospital, asking())
    before = page_of(hospital, asking(), found)
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="full"):
            page_of(hospital, asking(min_rows=3), found)
    state = hospital.site().state
    assert (state / PAGE_NAME).read_text(encoding="utf-8") == before
    assert not [path for path in state.iterdir() if PAGE_NAME in path.name and path.name != PAGE_NAME]


def full(descriptor: int) -> None:
    raise OSError(28, "full")


# Several classes and findings


def asking_for(table: str, **quality: object) -> Study:
    task = studies.make_study({studies.ONE_QUESTION: table}).task
    return asking(**quality).model_copy(update={"task": task})


def test_the_page_the_floor_and_the_pictures_know_each_class(hospital: Hospital) -> None:
    for number in range(12):
        hospital.add(f"{number}.dcm", dataset(picture(number), patient=f"P{number}"))
    hospital.label([(f"P{number}", "clear" if number % 2 else "opacity") for number in range(12)])
    study = asking_for(studies.THREE_CLASSES, min_patients_per_class=1)
    found = found_in(hospital, study)
    pictures = thumbnails(found.index, found.patients, SECRET, per_class=2)
    assert [each.class_name for each in pictures] == ["clear lungs"] * 2 + ["opacity"] * 2
    refused = floor_refusals(found.index, study, hospital.site().policy)
    assert [one for one in refused if one.startswith("0 mass patients could train")]
    text = Elements(page_of(hospital, study, found, pictures)).text
    assert "class train validation test all" in text
    assert re.search(r"clear lungs \d \d \d 6 opacity \d \d \d 6 mass 0 0 0 0 all patients \d \d \d 12", text)
    assert "No training patient counts as mass" in text


@pytest.mark.slow
def test_the_page_the_floor_and_the_pictures_know_who_has_a_finding_and_who_has_it_not(
    hospital: Hospital,
) -> None:
    for number in range(12):
        hospital.add(f"{number}.dcm", dataset(picture(number), patient=f"P{number}"))
    rows = [
        (f"P{number}", "clear" if number % 2 else "opacity", "0" if number < 4 else "")
        for number in range(12)
    ]
    hospital.label(rows, header=("PatientID", "finding", "effusion"))
    study = asking_for(studies.TWO_FINDINGS, min_patients_per_class=1)
    found = found_in(hospital, study)
    pictures = thumbnails(found.index, found.patients, SECRET, per_class=2)
    names = ["opacity-negative", "opacity-positive", "effusion-negative"]
    assert [each.class_name for each in pictures] == [name for name in names for _ in range(2)]
    refused = floor_refusals(found.index, study, hospital.site().policy)
    assert any(one.startswith("0 effusion-positive patients could train") for one in refused)
    text = Elements(page_of(hospital, study, found, pictures)).text
    for name, number in [*zip(names, (6, 6, 4), strict=True), ("effusion-positive", 0), ("all patients", 12)]:
        assert re.search(rf"{name} \d \d \d {number}\b", text), name
    assert "8 empty-finding" in text
