"""DICOM results: each kind of object of each kind of source, as dciodvfy, pydicom and highdicom see it."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import trained_models
from dicom_files import dataset, gradient, write
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, UltrasoundImageStorage
from readings import (
    DIGEST,
    SOURCES,
    changed,
    classifier,
    errors_of,
    image_of,
    masked,
    needs_dciodvfy,
    picture,
    plane_image,
    scored,
    segmenter,
    sequences_in,
    spreads,
    trained,
    volume_image,
)

from client.masks import plane_mask, volume_mask
from client.prediction.dicom_results.numbering import Kind
from client.prediction.dicom_results.placing import on_plane, on_slices
from client.prediction.dicom_results.source_images import read_source, slices_of
from client.prediction.dicom_results.writer import DicomResults, NotWritten
from client.prediction.reading import Mask
from client.series import read_series
from shared_models.configuration import ConfigurationError
from shared_models.study import Image

highdicom = pytest.importorskip("highdicom", reason="needs the extra: pip install 'collegium[results]'")
OVERRIDE = "Its modality is XC; the model was trained on CR."
WORDS = [kind.word for kind in Kind]
TWO_STRUCTURES = ((1,), (2,))


def results_of(folder: Path, name: str, *, attributes: dict[str, object] | None = None) -> dict[str, Path]:
    """All results of a source of this kind, by kind: a picture of a score, and a mask with its report."""
    kind = SOURCES[name]
    image, files = image_of(kind), kind.make(folder / "in")
    for path in files:
        changed(path, **attributes or {})
    scores = DicomResults(folder / "scores", [classifier(image)], {Kind.REPORT, Kind.PICTURE})
    written = scores.write(
        scored(files, image, frame=kind.frame, overrides=(OVERRIDE,), spreads=spreads()), picture()
    )
    masks = DicomResults(folder / "masks", [segmenter(image)], {Kind.SEGMENTATION})
    written += masks.write(masked(files, image, frame=kind.frame))
    return {path.stem.partition("-")[2]: path for path in written}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Path], dict[str, Path]]]:
    """By kind of source: its files and its results."""
    found = {}
    for name in SOURCES:
        folder = tmp_path_factory.mktemp(name)
        results = results_of(folder, name)
        sources = [
            path for path in sorted((folder / "in").iterdir()) if name != "clip" or path.stem == "clip"
        ]
        found[name] = sources, results
    return found


Made = dict[str, tuple[list[Path], dict[str, Path]]]


@pytest.mark.slow
@needs_dciodvfy
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", SOURCES)
def test_dciodvfy_finds_no_error(made: Made, name: str, word: str) -> None:
    assert errors_of(made[name][1][word]) == []


@needs_dciodvfy
def test_the_check_can_fail(made: Made, tmp_path: Path) -> None:
    broken = dcmread(made["series"][1]["segmentation"])
    del broken.SegmentSequence
    path = tmp_path / "broken.dcm"
    broken.save_as(path)
    assert errors_of(path)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", SOURCES)
def test_results_are_of_the_patient_and_the_study_in_a_series_of_their_own(
    made: Made, name: str, word: str
) -> None:
    sources, results = made[name]
    source, result = dcmread(sources[0]), dcmread(results[word])
    for keyword in (
        "PatientID",
        "PatientName",
        "PatientSex",
        "StudyInstanceUID",
        "AccessionNumber",
        "StudyDate",
    ):
        assert (result.get(keyword) or "") == (source.get(keyword) or ""), keyword
    assert result.SeriesInstanceUID != source.SeriesInstanceUID
    own = (result.SeriesInstanceUID, result.SOPInstanceUID)
    assert all(uid.startswith("2.25.") and UID(uid).is_valid for uid in own)
    assert result.file_meta.MediaStorageSOPInstanceUID == result.SOPInstanceUID
    assert str(result.SeriesDescription).startswith("RESEARCH")
    assert (result.Manufacturer, result.DeviceSerialNumber) == ("Collegium", DIGEST)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", SOURCES)
def test_results_refer_to_all_files_of_their_source(made: Made, name: str, word: str) -> None:
    sources, results = made[name]
    wanted = {
        (str(one.SOPInstanceUID), str(one.SOPClassUID))
        for one in (dcmread(path, stop_before_pixels=True) for path in sources)
    }
    found = [item for item in sequences_in(dcmread(results[word])) if "ReferencedSOPInstanceUID" in item]
    assert {(item.ReferencedSOPInstanceUID, item.ReferencedSOPClassUID) for item in found} == wanted
    frame = SOURCES[name].frame
    if frame is not None:
        assert frame + 1 in [item.get("ReferencedFrameNumber") for item in found]


@pytest.mark.parametrize("name", SOURCES)
def test_highdicom_reads_the_mask_on_the_pixels_of_its_source(made: Made, name: str) -> None:
    sources, results = made[name]
    mask = highdicom.seg.segread(results["segmentation"])
    source = dcmread(sources[0], stop_before_pixels=True)
    assert (mask.Rows, mask.Columns) == (source.Rows, source.Columns)
    assert [mask.get_segment_description(number).segment_label for number in (1, 2)] == ["liver", "tumour"]
    assert mask.pixel_array.any()
    if SOURCES[name].volume:
        assert mask.FrameOfReferenceUID == source.FrameOfReferenceUID
    else:
        expected = on_plane(
            _plane_reading_mask(), read_source(sources[0]).frame(SOURCES[name].frame or 0), plane_image()
        )
        found = np.zeros_like(expected)
        for frame, groups in zip(_frames(mask), mask.PerFrameFunctionalGroupsSequence, strict=True):
            found[frame > 0] = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert np.array_equal(found, expected)


def _frames(mask: Dataset) -> np.ndarray:
    return mask.pixel_array if mask.pixel_array.ndim == 3 else mask.pixel_array[np.newaxis]


def _plane_reading_mask() -> Mask:
    mask = masked([Path("none")], plane_image()).mask
    assert mask is not None
    return mask


@pytest.mark.parametrize("name", ["digital-x-ray", "computed-radiography", "photograph"])
def test_our_own_reader_takes_a_plane_mask_for_one_of_its_image(made: Made, name: str) -> None:
    sources, results = made[name]
    header = dcmread(sources[0], stop_before_pixels=True)
    again = plane_mask(results["segmentation"], header, plane_image(), structures=TWO_STRUCTURES)[0]
    assert _agreement(again, _plane_reading_mask()) >= 0.95


@pytest.mark.parametrize("name", ["series", "oblique-series", "enhanced-series"])
def test_our_own_reader_takes_a_volumes_mask_for_one_of_its_series(made: Made, name: str) -> None:
    sources, results = made[name]
    instances: list[str] = []
    volume = read_series(sources, volume_image(), instances.append)
    again = volume_mask(
        results["segmentation"], volume, volume_image(), instances=instances, structures=TWO_STRUCTURES
    )[0]
    wanted = masked(sources, volume_image()).mask
    assert wanted is not None
    seen = again > 0  # the grid reaches beyond a small series
    assert seen.any()
    assert ((wanted > 0)[seen]).mean() >= 0.95


def _agreement(one: Mask, other: Mask) -> float:
    return float(2.0 * ((one > 0) & (other > 0)).sum() / ((one > 0).sum() + (other > 0).sum()))


@pytest.mark.parametrize("name", SOURCES)
def test_highdicom_reads_the_report_and_finds_what_was_said(made: Made, name: str) -> None:
    report = highdicom.sr.srread(made[name][1]["report"])
    (group,) = report.content.get_image_measurement_groups()
    first, deviation, low, high = group.get_measurements()
    assert (first.name.meaning, first.unit.value) == ("Probability", "1")
    assert first.value == 0.8312345678
    assert [one.value for one in (deviation, low, high)] == [0.04, 0.78, 0.88]
    assert {one.name.meaning: one.value.meaning for one in group.get_qualitative_evaluations()} == {
        "Operating point screening": "Positive",
        "Operating point confirming": "Negative",
    }
    assert group.finding_type.meaning == "finding: yes, 1"
    assert len(group.source_images) == len(made[name][0])
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert report.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99COLLEGIUM"


def texts_of(report: Dataset) -> dict[str, list[str]]:
    """The texts of a report by the meaning of their names."""
    found: dict[str, list[str]] = {}
    for item in sequences_in(report):
        if item.get("ValueType") == "TEXT":
            found.setdefault(item.ConceptNameCodeSequence[0].CodeMeaning, []).append(item.TextValue)
    return found


def test_a_report_says_which_model_says_so_and_what_it_is_not(made: Made) -> None:
    texts = texts_of(dcmread(made["photograph"][1]["report"]))
    assert texts["Device Observer Serial Number"] == [DIGEST]
    assert texts["Device Observer Name"] == texts["Algorithm Name"] == ["test-study"]
    assert texts["Algorithm Version"] == [DIGEST]
    for part in ("run-7, round 2 of 3", "asked by Collegium 0.1.0", "architecture small-cnn"):
        assert any(part in text for text in texts["Algorithm Parameters"]), part
    assert "Not a medical device" in texts["Intended use"][0]
    assert texts["Refusal that was overridden"] == [f"Overridden: {OVERRIDE}"]
    assert "30 of 40 patients" in texts["What the test showed of such a score"][0]
    assert "reaches the threshold 0.25 of the operating point screening" in texts["Comment"][0]


@pytest.mark.slow
@needs_dciodvfy
@pytest.mark.parametrize("name", ["computed-radiography", "series", "enhanced-series"])
def test_what_the_predictor_says_is_what_the_results_hold(tmp_path: Path, name: str) -> None:
    kind = SOURCES[name]
    image = image_of(kind)
    kind.make(tmp_path / "in")
    scores = trained_models.trained(tmp_path / "scores", classifier(image).study)
    masks = trained_models.trained(tmp_path / "masks", segmenter(image).study)
    reading, marked = (trained_models.one(model, tmp_path / "in") for model in (scores, masks))
    (report,) = DicomResults(tmp_path / "report", [scores], {Kind.REPORT}).write(reading)
    (mask,) = DicomResults(tmp_path / "mask", [masks], {Kind.SEGMENTATION}).write(marked)
    assert errors_of(report) == errors_of(mask) == []
    (group,) = highdicom.sr.srread(report).content.get_image_measurement_groups()
    assert group.get_measurements()[0].value == reading.probabilities["positive"]
    assert texts_of(dcmread(report))["Algorithm Version"] == [scores.digest]
    stated = texts_of(dcmread(report)).get("What the test showed of such a score", [])
    assert stated == list(reading.statements.values())
    found = highdicom.seg.segread(mask)
    assert found.DeviceSerialNumber == masks.digest
    sources = [read_source(path) for path in marked.files]
    assert marked.mask is not None
    if kind.volume:
        size = int(sources[0].header.Rows), int(sources[0].header.Columns)
        placed = on_slices(marked.mask, slices_of(sources), size, image)
    else:
        placed = on_plane(marked.mask, sources[0].header, image)
    assert int(found.pixel_array.sum()) == np.count_nonzero(placed)


def test_several_models_are_one_device_with_all_their_digests(tmp_path: Path) -> None:
    image, files = plane_image(), SOURCES["photograph"].make(tmp_path / "in")
    models = [trained(classifier(image).study, digest=number * 64) for number in "abc"]
    (path,) = DicomResults(tmp_path / "out", models, {Kind.REPORT}).write(scored(files, image))
    texts = texts_of(dcmread(path))
    assert texts["Device Observer Name"] == ["3 models of test-study"]
    assert {f"model SHA-256 {number * 64}" for number in "abc"} <= set(texts["Algorithm Parameters"])
    other = DicomResults(tmp_path / "other", models[::-1], {Kind.REPORT}).write(scored(files, image))
    assert texts_of(dcmread(other[0]))["Algorithm Version"] == texts["Algorithm Version"]


def test_a_picture_says_what_it_is_not_and_keeps_what_is_above_the_banner(made: Made) -> None:
    found = dcmread(made["digital-x-ray"][1]["picture"])
    pixels, drawn = found.pixel_array, picture()
    factor = pixels.shape[1] // drawn.shape[1]
    assert np.array_equal(pixels[: drawn.shape[0] * factor : factor, ::factor], drawn)
    strip = pixels[drawn.shape[0] * factor :]
    assert len(strip) > 20
    assert strip.max() == 255, "white letters"
    assert strip[0].max() == strip[-1].max() == 0, "that end within the strip"
    assert DIGEST in found.DerivationDescription
    assert "NOT A MEDICAL DEVICE" in found.DerivationDescription
    assert OVERRIDE in found.DerivationDescription
    assert found.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert list(found.ImageType) == ["DERIVED", "SECONDARY"]


@pytest.mark.parametrize("said", ["YES", "NO", None])
def test_annotations_that_identify_are_what_the_source_says_of_them(tmp_path: Path, said: str | None) -> None:
    results = results_of(tmp_path, "computed-radiography", attributes={"BurnedInAnnotation": said})
    assert dcmread(results["picture"]).get("BurnedInAnnotation") == said


def test_what_was_lossy_stays_lossy(made: Made) -> None:
    for word in ("picture", "segmentation"):
        found = dcmread(made["photograph"][1][word])
        assert found.LossyImageCompression == "01"
        assert found.LossyImageCompressionMethod == "ISO_10918_1"


@pytest.mark.parametrize("width", [8, 40, 383, 384, 1000])
def test_the_banner_fits_into_pictures_of_any_width(tmp_path: Path, width: int) -> None:
    image, files = plane_image(), SOURCES["photograph"].make(tmp_path / "in")
    black = np.zeros((16, width, 3), dtype=np.uint8)
    (path,) = DicomResults(tmp_path / "out", [classifier(image)], {Kind.PICTURE}).write(
        scored(files, image), black
    )
    shown = dcmread(path).pixel_array
    assert shown[:, 0].max() == shown[:, -1].max() == 0, "no letter is cut off"
    assert shown.max() == 255


def test_a_picture_must_be_rgb(tmp_path: Path) -> None:
    image, files = plane_image(), SOURCES["photograph"].make(tmp_path / "in")
    results = DicomResults(tmp_path / "out", [classifier(image)], {Kind.PICTURE})
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(rows, columns, 3\)"):
        results.write(scored(files, image), np.zeros((8, 8), dtype=np.uint8))


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 192", "Οδυσσεύς^Ζωή"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
    ids=str,
)
def test_names_of_any_character_set_are_kept(tmp_path: Path, character_set: object, name: str) -> None:
    attributes = {"SpecificCharacterSet": character_set, "PatientName": name, "StudyDescription": "Übersicht"}
    if character_set != "ISO_IR 100":
        attributes["StudyDescription"] = "overview"
    for path in results_of(tmp_path, "photograph", attributes=attributes).values():
        found = dcmread(path)
        assert str(found.PatientName) == name
        assert found.StudyDescription == attributes["StudyDescription"]
        assert found.SpecificCharacterSet == "ISO_IR 192"


@needs_dciodvfy
def test_a_header_with_odd_and_missing_values_gives_valid_results(tmp_path: Path) -> None:
    odd = {
        "PatientName": None,
        "PatientSex": "unknown",
        "PatientBirthDate": None,
        "StudyDate": "yesterday",
        "StudyTime": None,
        "StudyID": None,
        "AccessionNumber": None,
        "ReferringPhysicianName": None,
        "PatientAge": "old",
        "LossyImageCompressionRatio": None,
    }
    with pytest.warns(UserWarning, match="Invalid value"):
        results = results_of(tmp_path, "digital-x-ray", attributes=odd)
    for path in results.values():
        assert errors_of(path) == []
        found = dcmread(path)
        assert (found.StudyDate, found.PatientSex, str(found.PatientName)) == ("", "", "")
        assert "PatientAge" not in found


def test_private_attributes_and_comments_stay_behind(tmp_path: Path) -> None:
    path = SOURCES["photograph"].make(tmp_path / "in")[0]
    source = dcmread(path)
    source.private_block(0x0011, "SECRET", create=True).add_new(0x01, "LO", "secret")
    source.PatientComments = source.AdditionalPatientHistory = "secret"
    source.OtherPatientIDs = "secret"
    source.save_as(path)
    image = plane_image()
    results = DicomResults(tmp_path / "out", [segmenter(image)], set(Kind))
    for written in results.write(masked([path], image), picture()):
        assert b"secret" not in written.read_bytes().lower()


@pytest.mark.parametrize("sop_class", [str(UltrasoundImageStorage), "1.2.840.10008.5.1.4.1.1.6", "1.2.3.4.5"])
def test_a_class_that_nobody_knows_is_referred_to_as_it_is(tmp_path: Path, sop_class: str) -> None:
    results = results_of(tmp_path, "computed-radiography", attributes={"SOPClassUID": sop_class})
    for path in results.values():
        items = [item for item in sequences_in(dcmread(path)) if "ReferencedSOPInstanceUID" in item]
        assert {str(item.ReferencedSOPClassUID) for item in items} == {sop_class}


@pytest.mark.parametrize(
    "keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"]
)
@pytest.mark.parametrize("value", [None, "not-a-uid"])
def test_a_source_without_a_uid_is_told_and_costs_that_one_only(
    tmp_path: Path, keyword: str, value: str | None
) -> None:
    image = plane_image()
    good, bad = (SOURCES["photograph"].make(tmp_path / name)[0] for name in ("good", "bad"))
    made = dcmread(bad)
    del made[keyword]
    if value is not None:
        with pytest.warns(UserWarning, match="Invalid value"):
            setattr(made, keyword, value)
    made.save_as(bad, enforce_file_format=False)
    results = DicomResults(tmp_path / "out", [classifier(image)], {Kind.REPORT})
    with pytest.raises(NotWritten, match=keyword) as told:
        results.write(scored([bad], image))
    assert "not-a-uid" not in str(told.value)
    assert len(results.write(scored([good], image))) == 1


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    results = DicomResults(tmp_path / "out", [classifier(plane_image())], {Kind.REPORT})
    with pytest.raises(NotWritten, match="No DICOM results were written"):
        results.write(scored([tmp_path / "gone.dcm"], plane_image()))


def test_a_series_without_a_frame_of_reference_has_a_report_and_no_mask(tmp_path: Path) -> None:
    files, image = SOURCES["oblique-series"].make(tmp_path / "in"), volume_image()
    for path in files:
        changed(path, FrameOfReferenceUID=None)
    with pytest.raises(NotWritten, match="FrameOfReferenceUID is missing"):
        DicomResults(tmp_path / "mask", [segmenter(image)], {Kind.SEGMENTATION}).write(masked(files, image))
    report = DicomResults(tmp_path / "report", [segmenter(image)], {Kind.REPORT}).write(masked(files, image))
    assert len(report) == 1


def test_files_of_two_series_make_no_result(tmp_path: Path) -> None:
    files = SOURCES["oblique-series"].make(tmp_path / "in")
    changed(files[3], SeriesInstanceUID="1.2.3")
    with pytest.raises(NotWritten, match="of several series"):
        DicomResults(tmp_path / "out", [classifier(volume_image())], {Kind.REPORT}).write(
            scored(files, volume_image())
        )


@needs_dciodvfy
@pytest.mark.parametrize("name", ["computed-radiography", "series", "enhanced-series"])
def test_where_nothing_was_found_one_empty_frame_stands_for_all(tmp_path: Path, name: str) -> None:
    kind = SOURCES[name]
    image, files = image_of(kind), kind.make(tmp_path / "in")
    empty = np.zeros(image.shape[1:], dtype=np.uint8)
    results = DicomResults(tmp_path / "out", [segmenter(image)], {Kind.SEGMENTATION})
    (path,) = results.write(masked(files, image, empty))
    assert errors_of(path) == []
    found = dcmread(path)
    assert not found.pixel_array.any()
    (series,) = found.ReferencedSeriesSequence
    assert len(series.ReferencedInstanceSequence) == len(files)


def test_a_slice_that_is_there_twice_is_marked_once(tmp_path: Path) -> None:
    files, image = SOURCES["oblique-series"].make(tmp_path / "in"), volume_image()
    copy = tmp_path / "in" / "copy.dcm"
    made = dcmread(files[4])
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    made.save_as(copy)
    whole = np.ones(image.shape[1:], dtype=np.uint8)
    (path,) = DicomResults(tmp_path / "out", [segmenter(image)], {Kind.SEGMENTATION}).write(
        masked([*files, copy], image, whole)
    )
    assert highdicom.seg.segread(path).NumberOfFrames == len(files)


@pytest.mark.slow
def test_one_series_of_each_kind_for_a_study_and_other_uids_with_each_call(tmp_path: Path) -> None:
    image = plane_image()
    files = [
        write(tmp_path / "in" / f"{number}.dcm", dataset(gradient(), study=study, image=str(number)))
        for number, study in enumerate("112")
    ]
    series, instances = [], []
    for call in ("first", "second"):
        results = DicomResults(tmp_path / call, [classifier(image)], {Kind.REPORT, Kind.PICTURE})
        found = [dcmread(path) for one in files for path in results.write(scored([one], image), picture())]
        series.append([str(one.SeriesInstanceUID) for one in found if one.Modality == "SR"])
        instances += [str(one.SOPInstanceUID) for one in found]
        assert [int(one.InstanceNumber) for one in found if one.Modality == "SR"] == [1, 2, 1]
    assert series[0][0] == series[0][1] != series[0][2]
    assert not set(series[0]) & set(series[1])
    assert len(set(instances)) == len(instances)


def test_results_are_for_their_owner_only_and_listed(tmp_path: Path) -> None:
    image, files = plane_image(), SOURCES["photograph"].make(tmp_path / "in")
    results = DicomResults(tmp_path / "new" / "out", [classifier(image)], {Kind.REPORT, Kind.PICTURE})
    written = results.write(scored(files, image), picture())
    written += results.write(scored(files, image))
    results.finish()
    folder = tmp_path / "new" / "out"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert results.files == written
    with (folder / "files.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["file", "kind", "input"],
        ["000001-report.dcm", "report", "photograph.dcm"],
        ["000001-picture.dcm", "picture", "photograph.dcm"],
        ["000002-report.dcm", "report", "photograph.dcm"],
    ]


def test_a_name_that_a_spreadsheet_would_compute_is_a_path(tmp_path: Path) -> None:
    image, files = plane_image(), SOURCES["photograph"].make(tmp_path / "in")
    results = DicomResults(tmp_path / "out", [classifier(image)], {Kind.REPORT})
    results.write(scored(files, image, name="=1+1.dcm"))
    results.finish()
    assert (tmp_path / "out" / "files.csv").read_text().splitlines()[1].endswith(",./=1+1.dcm")


def test_slices_are_named_once_in_a_report_of_several_outputs(tmp_path: Path) -> None:
    files, image = SOURCES["series"].make(tmp_path / "in"), volume_image()
    (path,) = DicomResults(tmp_path / "out", [segmenter(image)], {Kind.REPORT}).write(masked(files, image))
    report = highdicom.sr.srread(path)
    groups = report.content.get_image_measurement_groups()
    assert [len(group.source_images) for group in groups] == [len(files), 0]
    assert len(report.get_evidence()) == len(files)


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    with pytest.raises(ConfigurationError, match="is not empty; name another folder"):
        DicomResults(tmp_path, [classifier(plane_image())], {Kind.REPORT})


def test_a_model_without_masks_writes_no_segmentations(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="makes no masks"):
        DicomResults(tmp_path / "out", [classifier(plane_image())], {Kind.SEGMENTATION})


def test_without_highdicom_the_command_to_install_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'collegium\[results\]'"):
        DicomResults(tmp_path / "out", [classifier(plane_image())], {Kind.REPORT})


def test_an_override_stands_in_the_mask_too_and_lets_it_lie_as_it_is_stored(tmp_path: Path) -> None:
    image = plane_image(orientation="standard")
    path = changed(SOURCES["computed-radiography"].make(tmp_path / "in")[0], PatientOrientation=["L", "R"])
    said = "orientation: It names no two directions of a patient."
    with pytest.raises(NotWritten, match="No segmentation was written"):
        DicomResults(tmp_path / "one", [segmenter(image)], {Kind.SEGMENTATION}).write(masked([path], image))
    (written,) = DicomResults(tmp_path / "two", [segmenter(image)], {Kind.SEGMENTATION}).write(
        masked([path], image, overrides=(said,))
    )
    found = dcmread(written)
    assert f"Overridden: {said}" in found.SegmentSequence[0].SegmentDescription
    stored = on_plane(_plane_reading_mask(), read_source(path).header, plane_image())
    assert np.array_equal(np.maximum.reduce(_frames(found)), (stored > 0).astype(np.uint8))


@needs_dciodvfy
@pytest.mark.parametrize("orientation", ["as-stored", "standard"])
def test_a_slice_of_a_ct_by_itself_keeps_its_place_in_the_patient(tmp_path: Path, orientation: str) -> None:
    path = SOURCES["series"].make(tmp_path / "in")[3]
    image = Image.model_validate({**plane_image(modalities=("CT",)).model_dump(), "orientation": orientation})
    (written,) = DicomResults(tmp_path / "out", [segmenter(image)], {Kind.SEGMENTATION}).write(
        masked([path], image)
    )
    assert errors_of(written) == []
    found, source = dcmread(written), dcmread(path)
    assert found.FrameOfReferenceUID == source.FrameOfReferenceUID
    place = found.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    assert np.allclose(place.ImagePositionPatient, source.ImagePositionPatient)


@pytest.mark.slow
@needs_dciodvfy
@pytest.mark.parametrize("name", ["photograph", "enhanced-series"])
def test_whatever_bytes_a_header_holds_results_are_valid_or_it_is_told_why_there_are_none(
    tmp_path: Path, name: str
) -> None:
    kind, random = SOURCES[name], np.random.default_rng(5)
    image, (path,) = image_of(kind), kind.make(tmp_path / "in")
    whole = path.read_bytes()
    header = slice(200, whole.index(b"\xe0\x7f\x10\x00"))
    results = DicomResults(tmp_path / "out", [segmenter(image)], set(Kind))
    told, written = list[str](), list[Path]()
    for _ in range(20):
        content = bytearray(whole)
        for place in random.integers(header.start, header.stop, random.integers(1, 4)):
            content[place] = random.integers(0, 256)
        path.write_bytes(content)
        try:
            written += results.write(masked([path], image), picture())
        except NotWritten as trouble:
            told.append(str(trouble))
    assert told
    assert len(written) > 5
    assert not [sentence for sentence in told if "Phantom" in sentence or "2.25." in sentence]
    assert not [error for one in written for error in errors_of(one)]
