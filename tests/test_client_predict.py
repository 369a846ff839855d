"""Asking a model about files: what enters it is what training saw, and what comes out is written as it is."""

import csv
import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_files import NAME, SECRET, Hospital, dataset, gradient, jpeg_dataset, make_image, make_study, write
from ingest_runs import CountingReader
from mask_sites import LESION, ORGANS, MaskedHospital, mask_study
from PIL import Image as Pillow
from series_files import volume_hospital, volume_image, volume_study, write_enhanced, write_series
from studies import ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS
from studies import make_study as study_of
from trained_models import CPU, counts_of, model_file, one, read, trained
from typer.testing import CliRunner

from client.command import app
from client.ingestion import ingest
from client.predict_command import written
from client.prediction.inputs import inputs_of
from client.prediction.predictor import Predictor
from client.prediction.reading import Reading, Unread
from client.prediction.structure_sizes import sizes_of
from client.prediction.tables import Tables
from shared_models.model_file import ModelFileError, TrainedModel, read_model
from shared_models.study import Study
from shared_models.tasks.histograms import scores_between_bins

LIKE_THE_FILES = 'channels = 1\nintensity = "full-range"'


def invoke(*words: object) -> tuple[int, str]:
    """Exit status, and all that was said."""
    done = CliRunner().invoke(app, ["predict", *map(str, words)], catch_exceptions=False)
    return done.exit_code, done.output


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def values(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    return found


def read_by_name(model: TrainedModel, folder: Path) -> dict[str, Reading]:
    return {found.name: found for found in read(model, folder) if isinstance(found, Reading)}


def ingested(hospital: Hospital, study: Study) -> dict[str, torch.Tensor]:
    """Prepared images by path, as training has them."""
    found = ingest(hospital.site(), study, SECRET)
    images = {}
    for role, patients in found.patients.items():
        paths = [
            entry.path for entry in sorted(found.index.images, key=lambda entry: (entry.patient, entry.path))
        ]
        own = [path for path in paths if role_of_path(found, path) == role]
        assert len(own) == len(patients.images)
        images.update(zip(own, patients.images[:], strict=True))
    return images


def role_of_path(found, path: str):
    return next(entry.role for entry in found.index.images if entry.path == path)


def scores(model: TrainedModel, images: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The model's probabilities, in double precision from its logits, of one image after the other."""
    with torch.no_grad():
        return {
            path: model.task.scores(model.model(image[None]).double()).numpy().ravel()
            for path, image in images.items()
        }


@pytest.mark.slow
@pytest.mark.parametrize("table", [ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS])
def test_predictions_are_those_of_the_tensors_that_training_saw(tmp_path: Path, table: str) -> None:
    hospital = Hospital(tmp_path / "hospital")
    hospital.label(
        [(patient, "opacity", "1") for patient, _ in hospital.add_patients(range(40))],
        header=("PatientID", "finding", "effusion"),
    )
    study = study_of({ONE_QUESTION: table, "channels = 1": LIKE_THE_FILES})
    site = hospital.site()
    labels = site.labels.model_copy(update={"column": None})
    hospital.site = lambda: site.model_copy(update={"labels": labels})  # type: ignore[method-assign]
    model = trained(tmp_path, study)
    images, found = ingested(hospital, study), read_by_name(model, hospital.images)
    expected = scores(model, images)
    assert set(found) == set(expected)
    assert len(found) == 40
    for path, wanted in expected.items():
        np.testing.assert_array_equal(found[path].prepared, images[path].numpy())
        assert list(found[path].probabilities) == list(model.card.outputs)
        np.testing.assert_allclose(list(found[path].probabilities.values()), wanted, rtol=0, atol=1e-6)
    assert len({round(one.probabilities[model.card.outputs[0]], 6) for one in found.values()}) > 5


@pytest.mark.slow
def test_volumes_are_those_of_training_and_broken_series_are_left_out_as_there(tmp_path: Path) -> None:
    hospital, study = volume_hospital(tmp_path / "hospital"), volume_study()
    model = trained(tmp_path, study)
    index = ingest(hospital.site(), study, SECRET).index
    images, found = ingested(hospital, study), read(model, hospital.images)
    readings = {each.name: each for each in found if isinstance(each, Reading)}
    used = {entry.path: entry for entry in index.images}
    unlabelled = {name for name in readings if name.startswith("unlabelled/")}
    assert set(readings) - unlabelled == set(used)
    assert len(used) == 3
    expected = scores(model, images)
    for path, entry in used.items():
        np.testing.assert_array_equal(readings[path].prepared, images[path].numpy())
        np.testing.assert_allclose(
            readings[path].probabilities["positive"], expected[path][0], rtol=0, atol=1e-6
        )
        assert readings[path].files == tuple(hospital.images / name for name in entry.paths)
        assert readings[path].spacing == (2.5, 1.5, 1.5)
    left_out = {each.name: each.code for each in found if not isinstance(each, Reading)}
    reasons = {file.path: file.reason.code for file in index.left_out}
    assert left_out.items() <= reasons.items()
    assert set(left_out.values()) == {"missing-slice", "truncated", "not-dicom"}


def test_a_series_in_one_file_of_frames_and_the_files_of_one_that_are_named_one_by_one(
    tmp_path: Path,
) -> None:
    model = trained(tmp_path, volume_study())
    enhanced = write_enhanced(tmp_path / "all.dcm")
    assert one(model, enhanced).files == (enhanced,)
    paths = write_series(tmp_path / "series", kind="oblique")
    by_files, by_folder = one(model, *reversed(paths)), one(model, tmp_path / "series")
    np.testing.assert_array_equal(by_files.prepared, by_folder.prepared)
    np.testing.assert_array_equal(by_files.prepared, one(model, enhanced).prepared)


def test_copies_of_a_slice_do_not_count_twice(tmp_path: Path) -> None:
    model = trained(tmp_path, volume_study())
    paths = write_series(tmp_path / "series")
    alone = one(model, tmp_path / "series")
    (tmp_path / "series" / "copy.dcm").write_bytes(paths[3].read_bytes())
    again = one(model, tmp_path / "series")
    assert len(again.files) == len(paths)
    np.testing.assert_array_equal(alone.prepared, again.prepared)


@pytest.mark.parametrize("table", [LESION, ORGANS])
def test_marks_are_those_that_the_study_evaluates(tmp_path: Path, table: dict[str, object]) -> None:
    hospital = MaskedHospital(tmp_path / "hospital")
    hospital.add_lesions(range(12))
    study = mask_study(table)
    model = trained(tmp_path, study)
    found = read_by_name(model, hospital.images)
    assert len(found) == 12
    for reading in found.values():
        with torch.no_grad():
            logits = model.model(torch.from_numpy(reading.prepared)[None])
        assert reading.mask is not None
        assert reading.mask.dtype == np.uint8
        np.testing.assert_array_equal(reading.mask, model.task.marks(logits)[0].numpy())  # type: ignore[attr-defined]
        first = len(model.card.outputs) - len(study.task.finding_names)
        highest = model.task.scores(logits)[0, first:].flatten(1).amax(1)
        np.testing.assert_allclose(list(reading.probabilities.values()), highest, rtol=0, atol=1e-6)
        assert tuple(reading.probabilities) == study.task.finding_names
    sizes = [sizes_of(reading, study.task.finding_names) for reading in found.values()]
    assert any(one.num_points for each in sizes for one in each.values())


def test_areas_are_in_millimetres_where_the_file_knows_its_pixels(tmp_path: Path) -> None:
    model = trained(tmp_path, mask_study())
    pixels = gradient(32, 24)
    path = write(tmp_path / "a.dcm", dataset(pixels, PixelSpacing=[0.5, 0.5]))
    reading = one(model, path)
    assert reading.spacing == pytest.approx((1.0, 1.0))
    assert reading.mask is not None
    size = sizes_of(reading, ("lesion",))["lesion"]
    assert size.num_points == int((reading.mask == 1).sum())
    assert size.amount == pytest.approx(size.num_points * 1.0)
    unknown = one(model, write(tmp_path / "b.dcm", dataset(pixels)))
    assert sizes_of(unknown, ("lesion",))["lesion"].amount is None


@pytest.mark.parametrize("aspect", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("lies", ["", "L\\F", "F\\L"])
def test_the_size_of_a_point_is_that_of_the_prepared_image(tmp_path: Path, aspect: str, lies: str) -> None:
    """A bright square of known size in mm covers as many points as its size says, whichever way the image is turned."""
    image = make_image(rows=64, columns=48, aspect=aspect, orientation="standard" if lies else "as-stored")
    model = trained(tmp_path, make_study(image=image))
    pixels = np.zeros((200, 160), dtype=np.uint8)
    pixels[80:120, 60:100] = 255
    reading = one(
        model,
        write(
            tmp_path / "a.dcm", dataset(pixels, PixelSpacing=[0.8, 0.6], PatientOrientation=lies.split("\\"))
        ),
    )
    assert reading.spacing is not None
    bright = reading.prepared[0] > 0.5
    height, width = bright.any(1).sum() * reading.spacing[0], bright.any(0).sum() * reading.spacing[1]
    sides = (32.0, 24.0) if lies != "F\\L" else (24.0, 32.0)
    assert (height, width) == (pytest.approx(sides[0], abs=2.6), pytest.approx(sides[1], abs=2.6))
    area = reading.prepared.sum() * reading.spacing[0] * reading.spacing[1]
    assert area == pytest.approx(40 * 40 * 0.8 * 0.6, rel=0.02)


def test_the_middle_frame_is_taken_and_named(tmp_path: Path) -> None:
    frames = np.stack([gradient(), gradient()[::-1], gradient()[:, ::-1]])
    made = dataset(gradient())
    made.NumberOfFrames, made.PixelData = 3, frames.tobytes()
    path = write(tmp_path / "a.dcm", made)
    reading = one(trained(tmp_path, make_study(image=make_image(frames="middle"))), path)
    assert reading.frame == 1
    np.testing.assert_allclose(reading.prepared[0], frames[1] / 255.0, atol=1e-6)


def test_operating_points_and_statements_are_those_of_the_card(tmp_path: Path) -> None:
    study = study_of(
        {
            "channels = 1": LIKE_THE_FILES,
            "unnoised = true": 'unnoised = true\noperating_points = [{ name = "here", threshold = 0.4 }]',
        }
    )
    model = trained(tmp_path, study, test=counts_of(study, most=200))
    hospital = Hospital(tmp_path / "hospital")
    hospital.add_patients(range(10))
    edge = float(scores_between_bins(study.evaluation.num_bins)[9])
    assert edge == pytest.approx(0.354, abs=1e-3), "the nearest edge of a bin"
    for reading in read_by_name(model, hospital.images).values():
        score = reading.probabilities["positive"]
        assert [(one.name, one.threshold, one.reached) for one in reading.points] == [
            ("0.5", 0.5, score >= 0.5),
            ("here", pytest.approx(edge), score >= edge),
        ]
        assert reading.statements == {"positive": model.card.statement("positive", score)}
        assert reading.statements["positive"]


@pytest.mark.slow
def test_what_is_wrong_with_a_file_costs_that_file_only(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path / "hospital")
    hospital.add_patients(range(70))
    (hospital.images / "0013.dcm").write_bytes(b"nothing")
    (hospital.images / "0040.dcm").write_bytes((hospital.images / "0041.dcm").read_bytes()[:-100])
    model = trained(tmp_path, make_study())
    found = read(model, hospital.images)
    assert [each.name for each in found] == [f"{number:04d}.dcm" for number in range(70)]
    left_out = {each.name: each.code for each in found if not isinstance(each, Reading)}
    assert left_out == {"0013.dcm": "not-dicom", "0040.dcm": "truncated"}


@pytest.mark.slow
def test_files_are_read_as_they_are_asked_for_and_no_more_than_a_few_batches_ahead(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path / "hospital")
    hospital.add_patients(range(400))
    reader = CountingReader()
    predictor = Predictor(
        [trained(tmp_path, make_study())], device=CPU, num_readers=1, make_reader=lambda: reader
    )
    readings = predictor.readings(inputs_of([hospital.images]))
    next(readings)
    assert len(reader.pixels) <= 130
    assert len([*readings]) == 399
    assert len(reader.pixels) == 400


@pytest.mark.slow
def test_progress_ends_with_all_files(tmp_path: Path) -> None:
    for folder, study in (("planes", make_study()), ("volumes", volume_study())):
        seen = list[tuple[int, int]]()
        hospital = volume_hospital(tmp_path / folder)
        files = inputs_of([hospital.images])
        predictor = Predictor(
            [trained(tmp_path, study)], device=CPU, num_readers=1, make_reader=CountingReader
        )
        list(predictor.readings(files, lambda done, total, seen=seen: seen.append((done, total))))
        assert seen == sorted(seen)
        assert seen[-1] == (len(files), len(files))


# Several models


def test_several_models_give_their_mean_and_how_far_they_differ(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path / "hospital")
    hospital.add_patients(range(5))
    models = [trained(tmp_path / str(seed), make_study(), seed=seed) for seed in range(3)]
    single = [read_by_name(model, hospital.images) for model in models]
    for reading in read(models, hospital.images):
        assert isinstance(reading, Reading)
        own = [found[reading.name].probabilities["positive"] for found in single]
        assert reading.probabilities["positive"] == pytest.approx(np.mean(own), abs=1e-12)
        spread = reading.spreads["positive"]
        assert (spread.low, spread.high) == (min(own), max(own))
        assert spread.deviation == pytest.approx(np.std(own), abs=1e-12)
        assert spread.deviation > 0
        assert reading.points == ()
        assert reading.statements == {}


def test_several_models_mark_where_their_mean_is_highest(tmp_path: Path) -> None:
    hospital = MaskedHospital(tmp_path / "hospital")
    hospital.add_lesions(range(3))
    models = [trained(tmp_path / str(seed), mask_study(ORGANS), seed=seed) for seed in range(2)]
    for reading in read(models, hospital.images):
        assert isinstance(reading, Reading)
        image = torch.from_numpy(reading.prepared)[None]
        with torch.no_grad():
            mean = torch.stack([model.task.scores(model.model(image)) for model in models]).mean(0)
        assert reading.mask is not None
        np.testing.assert_array_equal(reading.mask, mean.argmax(1)[0].numpy())
        assert set(reading.spreads) == {"liver", "tumour"}


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (make_study(image=make_image(rows=32, columns=32)), "another preparation"),
        (study_of({ONE_QUESTION: THREE_CLASSES}), "other outputs"),
    ],
)
def test_models_that_differ_in_images_or_outputs_are_not_asked_together(
    tmp_path: Path, other: Study, difference: str
) -> None:
    models = [trained(tmp_path / "1", make_study()), trained(tmp_path / "2", other)]
    with pytest.raises(ModelFileError, match="cannot be asked together") as error:
        read(models, tmp_path)
    assert difference in str(error.value)


# The command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a hospital of six images, of which the first two are one patient's."""
    folder = tmp_path_factory.mktemp("place")
    study = make_study()
    model_file(folder / "model.safetensors", study, test=counts_of(study, most=200))
    hospital = Hospital(folder / "hospital")
    hospital.add_patients(range(4))
    for number in range(2):
        hospital.add(f"a/{number}.dcm", dataset(gradient()[number:], patient="PAT-7777", image=str(number)))
    return folder


@pytest.mark.slow
def test_tables_say_of_each_image_what_the_model_says_to_the_last_digit(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said = invoke(
        place / "model.safetensors", place / "hospital" / "images", "--out", out, "--workers", 1
    )
    assert code == 0, said
    assert "not a medical device" in said
    table = rows(out / "predictions.csv")
    readings = read_by_name(trained_of(place), place / "hospital" / "images")
    assert [row["name"] for row in table] == [f"000{number}.dcm" for number in range(4)] + [
        "a/0.dcm",
        "a/1.dcm",
    ]
    for row in table:
        assert float(row["probability/positive"]) == readings[row["name"]].probabilities["positive"]
        assert row["point/positive/0.5"] == str(int(float(row["probability/positive"]) >= 0.5))
        assert row["statement/positive"] == readings[row["name"]].statements["positive"]
        assert row["overrides"] == ""
    assert [row["patient"] for row in table] == ["1", "2", "3", "4", "5", "5"]
    found = values(out)
    assert found["models"][0]["digest"] == trained_of(place).digest
    assert [one["probabilities"]["positive"] for one in found["readings"]] == [
        float(row["probability/positive"]) for row in table
    ]
    assert found["unread"] == []
    assert found["num_read"] == 6


def trained_of(place: Path) -> TrainedModel:
    return read_model(place / "model.safetensors")


@pytest.mark.slow
def test_a_patients_row_is_the_mean_of_the_images(place: Path, tmp_path: Path) -> None:
    invoke(
        place / "model.safetensors", place / "hospital" / "images", "--out", tmp_path / "out", "--workers", 1
    )
    images = rows(tmp_path / "out" / "predictions.csv")
    patients = rows(tmp_path / "out" / "predictions_by_patient.csv")
    assert [(row["patient"], row["num_images"]) for row in patients] == [
        ("1", "1"),
        ("2", "1"),
        ("3", "1"),
        ("4", "1"),
        ("5", "2"),
    ]
    for row in patients:
        own = [float(one["probability/positive"]) for one in images if one["patient"] == row["patient"]]
        assert float(row["probability/positive"]) == pytest.approx(np.mean(own), abs=1e-12)
        assert row["point/positive/0.5"] == str(int(np.mean(own) >= 0.5))
        assert row["statement/positive"] == trained_of(place).card.statement("positive", float(np.mean(own)))
    by_patient = values(tmp_path / "out")["by_patient"]
    assert [one["num_images"] for one in by_patient] == [1, 1, 1, 1, 2]


@pytest.mark.slow
def test_what_is_written_is_for_its_owner_only_and_names_no_patient(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _, said = invoke(place / "model.safetensors", place / "hospital" / "images", "--out", out, "--workers", 1)
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    written = [path for path in out.rglob("*") if path.is_file()]
    assert {path.name for path in written if path.parent == out} == {
        "card.html",
        "index.html",
        "list.js",
        "predictions.csv",
        "predictions_by_patient.csv",
        "predictions.json",
    }
    assert {path.parent.name for path in written} == {out.name, "images"}
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = said + "".join(path.read_text(encoding="utf-8") for path in written)
    for secret in ("PAT-", NAME, "Oftering", "ACC-", "1.2.826"):
        assert secret not in text


@pytest.mark.slow
def test_identifiers_are_written_where_they_are_asked_for(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    images = place / "hospital" / "images" / "a"
    invoke(place / "model.safetensors", images, "--out", out, "--workers", 1, "--identifiers")
    table = rows(out / "predictions.csv")
    assert [row["PatientID"] for row in table] == ["PAT-7777", "PAT-7777"]
    assert len({row["SOPInstanceUID"] for row in table}) == 2
    assert NAME not in (out / "predictions.json").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_name_is_no_formula_for_a_spreadsheet(place: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write(images / "=1+1.dcm", dataset(gradient(), patient="@SUM(A1)"))
    invoke(place / "model.safetensors", images, "--out", tmp_path / "out", "--workers", 1, "--identifiers")
    (row,) = rows(tmp_path / "out" / "predictions.csv")
    assert row["name"] == "./=1+1.dcm"
    assert row["PatientID"] == "'@SUM(A1)"


@pytest.mark.slow
def test_earlier_predictions_stay_unless_they_are_to_be_replaced(place: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "out", place / "hospital" / "images"
    first = images / "0000.dcm"
    assert invoke(place / "model.safetensors", first, "--out", out, "--workers", 1)[0] == 0
    before = (out / "predictions.csv").read_bytes()
    done = CliRunner().invoke(
        app, ["predict", str(place / "model.safetensors"), str(images), "--out", str(out)]
    )
    assert "has predictions already" in str(done.exception)
    assert (out / "predictions.csv").read_bytes() == before
    assert invoke(place / "model.safetensors", images, "--out", out, "--workers", 1, "--overwrite")[0] == 0
    assert len(rows(out / "predictions.csv")) == 6


@pytest.mark.slow
def test_masks_are_written_as_pictures_of_the_models_grid(tmp_path: Path) -> None:
    hospital = MaskedHospital(tmp_path / "hospital")
    hospital.add_lesions(range(3))
    path = model_file(tmp_path / "model.safetensors", mask_study())
    out = tmp_path / "out"
    code, said = invoke(path, hospital.images, "--out", out, "--workers", 1)
    assert code == 0, said
    readings = read_by_name(read_model(path), hospital.images)
    for row in rows(out / "predictions.csv"):
        mask = np.asarray(Pillow.open(out / row["mask"]))
        np.testing.assert_array_equal(mask, readings[row["name"]].mask)
        assert int(row["points/lesion"]) == int((mask == 1).sum())
        assert row["mm2/lesion"] == ""
        assert stat.S_IMODE((out / row["mask"]).stat().st_mode) == 0o600


def test_a_model_of_volumes_tells_millilitres(tmp_path: Path) -> None:
    image = volume_image(rows=16, columns=16, depth=8)
    model = trained(tmp_path, mask_study(LESION, image=image))
    write_series(tmp_path / "series")
    reading = one(model, tmp_path / "series")
    size = sizes_of(reading, ("lesion",))["lesion"]
    assert size.amount == pytest.approx(size.num_points * 2.5 * 1.5 * 1.5 / 1000)
    assert size.num_points > 0


def test_colour_images_are_asked_about_too(tmp_path: Path) -> None:
    image = make_image(modalities=("XC",), channels=3)
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    reading = one(trained(tmp_path, make_study(image=image)), write(tmp_path / "a.dcm", jpeg_dataset(pixels)))
    assert reading.prepared.shape == (3, 16, 16)


def test_the_card_is_shown_and_written_as_a_page(place: Path, tmp_path: Path) -> None:
    page, model = tmp_path / "card.html", trained_of(place)
    done = CliRunner().invoke(app, ["card", str(place / "model.safetensors"), "--html", str(page)])
    assert done.exit_code == 0, done.output
    assert "Not a medical device" in done.output
    text = page.read_text(encoding="utf-8")
    for part in (model.digest, model.card.study_hash, "Not a medical device", "Operating points", "AUROC"):
        assert part in text
    for outside in ("http:", "https:", "<script", "src="):
        assert outside not in text
    told = json.loads(CliRunner().invoke(app, ["card", str(place / "model.safetensors"), "--json"]).output)
    assert told["digest"] == model.digest
    assert told["card"] == json.loads(model.card.to_json())


@pytest.mark.slow
def test_a_card_of_every_kind_of_study_can_be_shown(tmp_path: Path) -> None:
    studies = [
        study_of({ONE_QUESTION: THREE_CLASSES}, private=True),
        study_of({ONE_QUESTION: TWO_FINDINGS}),
        mask_study(ORGANS),
        volume_study(),
    ]
    for number, study in enumerate(studies):
        path = model_file(tmp_path / f"{number}.safetensors", study, tested=number != 3)
        done = CliRunner().invoke(app, ["card", str(path)])
        assert done.exit_code == 0, done.output
        assert study.name in done.output


@pytest.mark.slow
def test_several_models_are_asked_by_with(place: Path, tmp_path: Path) -> None:
    other = model_file(tmp_path / "other.safetensors", make_study(), seed=1)
    images = place / "hospital" / "images"
    words = [place / "model.safetensors", images, "--with", other, "--workers", 1]
    code, said = invoke(*words, "--out", tmp_path / "out")
    assert code == 0, said
    assert "±" in said
    models = [trained_of(place), read_model(other)]
    readings = {one.name: one for one in read(models, images) if isinstance(one, Reading)}
    for row in rows(tmp_path / "out" / "predictions.csv"):
        spread = readings[row["name"]].spreads["positive"]
        assert float(row["deviation/positive"]) == spread.deviation
        assert (float(row["lowest/positive"]), float(row["highest/positive"])) == (spread.low, spread.high)
        assert "statement/positive" not in row
    assert [one["digest"] for one in values(tmp_path / "out")["models"]] == [one.digest for one in models]
    unlike = model_file(tmp_path / "unlike.safetensors", mask_study())
    code, said = invoke(place / "model.safetensors", images, "--with", unlike, "--out", tmp_path / "none")
    assert code == 1
    assert "cannot be asked together" in said


class Notes:
    """A writer that notes what it is given."""

    def __init__(self) -> None:
        self.names = list[str]()

    def write(self, reading: Reading) -> None:
        self.names.append(reading.name)

    def left_out(self, unread: Unread) -> None:
        self.names.append(unread.code)

    def finish(self) -> None:
        self.names.append("finished")


def test_writers_take_each_reading_as_it_comes_and_are_told_the_end(place: Path, tmp_path: Path) -> None:
    images = place / "hospital" / "images"
    (images / "a" / "notes.txt").write_text("nothing", encoding="utf-8")
    model, notes = trained_of(place), Notes()
    predictor = Predictor([model], device=CPU, num_readers=1, make_reader=CountingReader)
    with Tables(
        tmp_path, predictor.ensemble, identifiers=False, overrides=(), now=datetime(2026, 1, 1, tzinfo=UTC)
    ) as tables:
        summary = written(predictor.readings(inputs_of([images])), [tables, notes])
    (images / "a" / "notes.txt").unlink()
    read = [name for name in notes.names if name not in ("not-dicom", "finished")]
    assert read == [row["name"] for row in rows(tmp_path / "predictions.csv")]
    assert notes.names[-1] == "finished"
    assert "not-dicom" in notes.names
    assert (summary.num_read, dict(summary.left_out), summary.exit_code) == (6, {"not-dicom": 1}, 3)


def test_tables_that_are_not_finished_are_not_there(place: Path, tmp_path: Path) -> None:
    model = trained_of(place)
    predictor = Predictor([model], device=CPU, num_readers=1, make_reader=CountingReader)
    readings = predictor.readings(inputs_of([place / "hospital" / "images"]))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with (
        pytest.raises(KeyboardInterrupt),
        Tables(tmp_path / "out", predictor.ensemble, identifiers=False, overrides=(), now=now) as tables,
    ):
        for found in readings:
            assert isinstance(found, Reading)
            tables.write(found)
            raise KeyboardInterrupt
    assert list((tmp_path / "out").iterdir()) == []
