"""What a model was not trained for is refused in one sentence; an override lets it through and is told everywhere."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    dataset,
    gradient,
    jpeg_dataset,
    make_image,
    make_study,
    rt_plan,
    write,
    write_truncated,
)
from pydicom.uid import EnhancedCTImageStorage
from series_files import HOUNSFIELD, changed, volume_study, write_series
from trained_models import model_file, one, read, refused, trained
from typer.testing import CliRunner

from client.command import app
from client.prediction.reading import Reading
from client.prediction.refusals import LUMA, OVERRIDABLE
from client.reasons import Reason
from shared_models.configuration import ConfigurationError
from shared_models.quality import Quality
from shared_models.study import Study

STRICT = Quality(
    views=("PA",),
    body_parts=("CHEST",),
    photometric=("MONOCHROME2",),
    unstated="refuse",
    min_rows=16,
    min_columns=16,
    max_saturated_share=0.6,
)
GOOD = {"ViewPosition": "PA", "BodyPartExamined": "CHEST"}


def multi_frame(folder: Path) -> Path:
    made = dataset(gradient(), **GOOD)
    made.NumberOfFrames, made.PixelData = 3, np.stack([gradient()] * 3).tobytes()
    return write(folder / "frames.dcm", made)


def colour(folder: Path, **attributes: object) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    made = jpeg_dataset(pixels, **GOOD, **attributes)
    made.Modality = "CR"
    return write(folder / "colour.dcm", made)


def grey(folder: Path, pixels: np.ndarray | None = None, **attributes: object) -> Path:
    return write(
        folder / "grey.dcm", dataset(gradient() if pixels is None else pixels, **{**GOOD, **attributes})
    )


def saturated() -> np.ndarray:
    pixels = gradient()
    pixels[:12] = 255
    return pixels


CASES: list[tuple[Reason, Callable[[Path], Path]]] = [
    (Reason.OTHER_MODALITY, lambda folder: grey(folder, modality="MR")),
    (Reason.OTHER_MODALITY, lambda folder: grey(folder, modality="")),
    (Reason.MULTI_FRAME, multi_frame),
    (Reason.OTHER_VIEW, lambda folder: grey(folder, ViewPosition="LL")),
    (Reason.OTHER_VIEW, lambda folder: grey(folder, ViewPosition="")),
    (Reason.OTHER_BODY_PART, lambda folder: grey(folder, BodyPartExamined="SKULL")),
    (Reason.OTHER_PHOTOMETRIC, lambda folder: grey(folder, photometric="MONOCHROME1")),
    (Reason.WRONG_SIZE, lambda folder: grey(folder, gradient(12, 12))),
    (Reason.BURNED_IN, lambda folder: grey(folder, BurnedInAnnotation="YES")),
    (Reason.BLANK, lambda folder: grey(folder, np.full((16, 16), 7, dtype=np.uint8))),
    (Reason.SATURATED, lambda folder: grey(folder, saturated())),
    (Reason.ORIENTATION, lambda folder: grey(folder, PatientOrientation=["L", "R"])),
]


def strict_study() -> Study:
    return make_study(image=make_image(orientation="standard"), quality=STRICT)


@pytest.mark.parametrize(
    ("reason", "made"), CASES, ids=[f"{case[0].code}-{n}" for n, case in enumerate(CASES)]
)
def test_what_training_left_out_is_refused_and_let_through_where_somebody_says_so(
    tmp_path: Path, reason: Reason, made: Callable[[Path], Path]
) -> None:
    model, path = trained(tmp_path, strict_study()), made(tmp_path)
    unread = refused(model, path)
    assert unread.code == reason.code
    assert unread.can_be_overridden
    assert unread.sentence.startswith(reason.sentence)
    others = [other for other in OVERRIDABLE if other is not reason]
    blank = [] if reason is not Reason.BLANK else [Reason.SATURATED]
    assert (
        refused(model, path, overrides=[other for other in others if other not in blank]).code == reason.code
    )
    reading = one(model, path, overrides=[reason, *blank])
    assert f"{reason.code}: {unread.sentence}" in reading.overrides
    assert reading.statements == {}
    assert 0.0 <= reading.probabilities["positive"] <= 1.0


def test_an_image_that_is_wanted_carries_no_override(tmp_path: Path) -> None:
    model = trained(tmp_path, strict_study())
    plain = one(model, grey(tmp_path))
    allowed = one(model, grey(tmp_path), overrides=OVERRIDABLE)
    assert plain.overrides == allowed.overrides == ()
    np.testing.assert_array_equal(plain.prepared, allowed.prepared)
    assert plain.statements == allowed.statements


def test_several_things_at_once_need_an_override_each(tmp_path: Path) -> None:
    model = trained(tmp_path, strict_study())
    path = grey(tmp_path, gradient(12, 12), modality="MR", ViewPosition="LL")
    needed = [Reason.OTHER_MODALITY, Reason.OTHER_VIEW, Reason.WRONG_SIZE]
    for reason in needed:
        rest = [other for other in needed if other is not reason]
        assert refused(model, path, overrides=rest).code == reason.code
    reading = one(model, path, overrides=needed)
    assert [sentence.partition(":")[0] for sentence in reading.overrides] == [one.code for one in needed]


def test_colour_for_grey_and_grey_for_colour(tmp_path: Path) -> None:
    grey_model = trained(tmp_path / "grey", make_study())
    colour_model = trained(tmp_path / "colour", make_study(image=make_image(channels=3)))
    picture, plain = colour(tmp_path), grey(tmp_path)
    for model, path in ((grey_model, picture), (colour_model, plain)):
        assert refused(model, path).code == "channel-mismatch"
    made_grey = one(grey_model, picture, overrides=[Reason.CHANNEL_MISMATCH]).prepared
    in_colour = one(colour_model, picture).prepared
    np.testing.assert_allclose(made_grey[0], np.tensordot(LUMA, in_colour, axes=1), atol=1e-6)
    thrice = one(colour_model, plain, overrides=[Reason.CHANNEL_MISMATCH]).prepared
    for channel in thrice:
        np.testing.assert_array_equal(channel, one(grey_model, plain).prepared[0])


def test_no_override_makes_hounsfield_units_of_what_has_none(tmp_path: Path) -> None:
    model = trained(tmp_path, make_study(image=HOUNSFIELD))
    mr = grey(tmp_path, modality="MR")
    assert refused(model, mr, overrides=OVERRIDABLE).code == "other-modality"
    ct = grey(tmp_path, modality="CT")
    assert refused(model, ct, overrides=OVERRIDABLE).code == "not-hounsfield"


# Volumes


def test_a_plane_image_is_no_volume(tmp_path: Path) -> None:
    model = trained(tmp_path, volume_study())
    paths = write_series(tmp_path / "series")
    unread = refused(model, paths[0], overrides=OVERRIDABLE)
    assert (unread.code, unread.can_be_overridden) == ("no-volume", False)
    assert "1 slice." in unread.sentence
    assert refused(model, grey(tmp_path)).code == "other-modality"


def test_a_model_of_plane_images_takes_no_volume_in_one_file(tmp_path: Path) -> None:
    study = make_study(image=make_image(modalities=("CT",)))
    made = dataset(gradient(), modality="CT", SOPClassUID=EnhancedCTImageStorage)
    made.NumberOfFrames, made.PixelData = 3, np.stack([gradient()] * 3).tobytes()
    assert refused(trained(tmp_path, study), write(tmp_path / "volume.dcm", made)).code == "multi-frame"


def test_an_override_of_one_slice_is_told_of_the_volume(tmp_path: Path) -> None:
    study = volume_study(quality=Quality(body_parts=("CHEST",), unstated="refuse").model_dump())
    model = trained(tmp_path, study)
    paths = write_series(tmp_path / "series")
    for number, path in enumerate(paths):
        changed(path, BodyPartExamined="SKULL" if number == 4 else "CHEST")
    codes = {unread.code for unread in read(model, tmp_path / "series")}  # type: ignore[union-attr]
    assert codes == {"other-body-part"}
    reading = one(model, tmp_path / "series", overrides=[Reason.OTHER_BODY_PART])
    assert len(reading.files) == len(paths)
    assert "It is SKULL" in reading.overrides[0]


def test_a_volume_is_never_thinner_than_its_series(tmp_path: Path) -> None:
    model = trained(tmp_path, volume_study())
    paths = write_series(tmp_path / "series")
    paths[5].write_bytes(paths[5].read_bytes()[:100])
    found = read(model, tmp_path / "series", overrides=OVERRIDABLE)
    assert {(each.code, each.num_files) for each in found if not isinstance(each, Reading)} == {
        ("not-dicom", 1),
        ("missing-slice", len(paths) - 1),
    }


def test_files_of_two_patients_or_of_no_series_are_no_volume(tmp_path: Path) -> None:
    model = trained(tmp_path, volume_study())
    paths = write_series(tmp_path / "series")
    changed(paths[2], PatientID="PAT-0002")
    unread = refused(model, tmp_path / "series")
    assert (unread.code, unread.num_files) == ("no-volume", len(paths))
    assert "PAT-" not in unread.sentence
    for path in paths:
        changed(path, SeriesInstanceUID="")
    assert {each.code for each in read(model, tmp_path / "series")} == {"missing-identifier"}  # type: ignore[union-attr]


# Files that are something else


CMS = bytes.fromhex("3082010006092a864886f70d010703a0820100") + bytes(200)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"Hello,\nthis is text.\n", "It is text."),
        (b"", "It is empty."),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "as a PNG does"),
        (b"PK\x03\x04" + bytes(500), "ZIP archive does: unpack it first"),
        (CMS, "It is encrypted, as a Secure DICOM File is: decrypt it first"),
        (b"-----BEGIN PGP MESSAGE-----\n", "OpenPGP does: decrypt it first"),
        (b"age-encryption.org/v1\n", "encrypted with age does: decrypt it first"),
        (np.random.default_rng(0).bytes(5000), "It may be something else, or be encrypted."),
    ],
)
def test_a_file_that_is_no_dicom_is_told_as_what_it_seems_to_be(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "file.dcm"
    path.write_bytes(content)
    unread = refused(trained(tmp_path, make_study()), path, overrides=OVERRIDABLE)
    assert unread.code == "not-dicom"
    assert sentence in unread.sentence
    assert "\n" not in unread.sentence


def test_a_truncated_file_a_plan_and_a_folder_of_nothing(tmp_path: Path) -> None:
    model = trained(tmp_path, make_study())
    cut = write_truncated(tmp_path / "cut.dcm", dataset(gradient()))
    assert refused(model, cut, overrides=OVERRIDABLE).code == "truncated"
    plan = write(tmp_path / "plan.dcm", rt_plan())
    assert refused(model, plan, overrides=OVERRIDABLE).code == "not-an-image"
    (tmp_path / "empty").mkdir()
    assert read(model, tmp_path / "empty") == []


# The command: what it says, and its exit status


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("model") / "model.safetensors", make_study())


def invoke(model: Path, out: Path, *words: object) -> tuple[int, str]:
    given = ["predict", str(model), *map(str, words), "--out", str(out), "--workers", "1"]
    done = CliRunner().invoke(app, given, catch_exceptions=False)
    return done.exit_code, done.output


@pytest.mark.thorough
def test_all_read_is_0_some_left_out_3_none_read_1(model: Path, tmp_path: Path) -> None:
    good = write(tmp_path / "good.dcm", dataset(gradient()))
    other = write(tmp_path / "other.dcm", dataset(gradient(), modality="MR"))
    plan = write(tmp_path / "plan.dcm", rt_plan())
    assert invoke(model, tmp_path / "1", good)[0] == 0
    code, said = invoke(model, tmp_path / "2", good, other)
    assert code == 3
    assert "other-modality" in said
    assert "--override other-modality" in said
    assert invoke(model, tmp_path / "3", other)[0] == 1
    assert invoke(model, tmp_path / "4", good, plan)[0] == 0, "nobody expects a reading of a plan"
    assert invoke(model, tmp_path / "5", good, other, "--override", "other-modality")[0] == 0
    as_json = json.loads(invoke(model, tmp_path / "6", good, other, "--json")[1])
    assert as_json["num_read"] == 1
    assert as_json["num_left_out"] == {"other-modality": 1}


@pytest.mark.slow
def test_an_override_stands_in_every_output(model: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.dcm", dataset(gradient(), modality="MR"))
    _, said = invoke(model, tmp_path / "out", other, "--override", "other-modality")
    assert "for which the model was not trained" in said
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    with (tmp_path / "out" / "predictions_by_patient.csv").open(encoding="utf-8", newline="") as file:
        (patient,) = csv.DictReader(file)
    values = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    sentence = (
        "other-modality: Its Modality (0008,0060) is not one of the study's. It is MR; the study uses CR."
    )
    assert row["overrides"] == patient["overrides"] == sentence
    assert patient["statement/positive"] == ""
    assert values["by_patient"][0]["overrides"] == [sentence]
    assert values["readings"][0]["overrides"] == [sentence]
    assert values["overrides"] == ["other-modality"]


def test_a_model_that_cannot_be_used_is_1_and_nothing_is_written(model: Path, tmp_path: Path) -> None:
    good = write(tmp_path / "good.dcm", dataset(gradient()))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(model.read_bytes()[:-1000])
    for wrong in (cut, good, tmp_path / "none.safetensors"):
        code, said = invoke(wrong, tmp_path / "out", good)
        assert code == 1
        assert said.startswith(f"{wrong}: ")
        assert said.count("\n") == 1
        done = CliRunner().invoke(app, ["card", str(wrong)])
        assert done.exit_code == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_wrong_usage_is_2(model: Path, tmp_path: Path) -> None:
    good = write(tmp_path / "good.dcm", dataset(gradient()))
    for words, sentence in (
        ((good, "--override", "blue"), "--override blue: give one of other-modality"),
        ((good, "--override", "truncated"), "give one of"),
        ((tmp_path / "nothing",), "is not there; name DICOM files or folders"),
        ((), "what is to be read?"),
        ((good, "--device", "abacus"), "--device abacus: give auto, cpu"),
    ):
        with pytest.raises(ConfigurationError) as error:
            invoke(model, tmp_path / "out", *words)
        assert sentence in str(error.value)
    done = subprocess.run(
        [sys.executable, "-m", "client.command", "predict", str(model)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("what is to be read?")


@pytest.mark.slow
def test_the_study_in_a_pacs_needs_a_site_that_has_one(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        invoke(model, tmp_path / "out", "--accession", "A1", "--config", tmp_path / "site.toml")
    with pytest.raises(ConfigurationError, match="is no accession number"):
        invoke(model, tmp_path / "out", "--accession", "*")
    with pytest.raises(ConfigurationError, match="is no Study Instance UID"):
        invoke(model, tmp_path / "out", "--study-uid", "1.2.x")
