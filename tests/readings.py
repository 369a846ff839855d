"""Readings of phantoms without a predictor: what a model of a small study might say of files of each kind."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from dicom_files import make_study, write
from mask_sites import ORGANS, mask_study
from PIL import Image as Pillow
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UltrasoundMultiFrameImageStorage
from series_files import write_enhanced, write_series

from client.prediction.reading import PointReading, Reading, Spread
from shared_models.architectures import outline
from shared_models.model_card import CardPrivacy, ModelCard
from shared_models.model_file import TrainedModel
from shared_models.study import Image, Study
from shared_models.tasks.registry import task_of
from simulations.preparation.dicom_writer import Header, JpegPicture, Subject, derived_uid, dicom_bytes
from simulations.preparation.nodule_hospitals import nodule_caseloads
from simulations.preparation.phantom_hospitals import phantom_caseloads
from simulations.preparation.sources import NodulePhantomSource, PhantomSource

DIGEST = "0123456789abcdef" * 4
PLANE = {"modalities": ("CR", "DX", "XC", "US"), "channels": 1, "rows": 24, "columns": 32}
VOLUME = {
    "modalities": ("CT",),
    "channels": 1,
    "rows": 24,
    "columns": 24,
    "depth": 16,
    "spacing": 12.0,
    "slice_spacing": 10.0,
    "intensity": "hounsfield",
    "window_center": 0.0,
    "window_width": 800.0,
}
needs_dciodvfy = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: apt install dicom3tools)"
)


@dataclass(frozen=True)
class Kind:
    """A kind of source: how its files are made, and whether a volume or a frame is read of them."""

    make: Callable[[Path], list[Path]]
    volume: bool = False
    frame: int | None = None


def plane_image(**changes: object) -> Image:
    """What the test studies want of a plane image."""
    return Image.model_validate({**PLANE, **changes})


def volume_image(**changes: object) -> Image:
    """What they want of a volume."""
    return Image.model_validate({**VOLUME, **changes})


@cache
def classifier(image: Image) -> TrainedModel:
    """A model that was trained by nobody, of one question."""
    architecture = "small-cnn" if image.depth is None else "small-cnn-3d"
    model = {"architecture": architecture, "width": 8}
    parts = {**make_study().model_dump(), "image": image.model_dump(), "model": model}
    return trained(Study.model_validate(parts))


@cache
def segmenter(image: Image) -> TrainedModel:
    """The same, of two structures."""
    return trained(mask_study(ORGANS, image=image))


def trained(study: Study, digest: str = DIGEST) -> TrainedModel:
    """The study's network as it begins."""
    task = task_of(study)
    card = ModelCard(
        study=study,
        study_hash=study.hash,
        manifest_hash=DIGEST,
        run_id="run-7",
        rounds=3,
        kept_round=2,
        num_sites=3,
        privacy=CardPrivacy(
            mode="none",
            unit="patient",
            epsilon=None,
            delta=None,
            noise_multiplier=None,
            evaluation_epsilon=None,
            evaluation_noised=False,
            min_sites_in_sum=2,
            num_colluding=0,
        ),
        outputs=tuple(task.output_names),
        activation=task.activation,
        tested=None,
        test={},
        test_noise=0.0,
        limits=("Nobody tested it.",),
        versions={"collegium": "0"},
    )
    return TrainedModel(
        card=card, task=task, model=outline(study).eval(), digest=digest, name="model.safetensors"
    )


def scored(files: list[Path], image: Image, **changes: object) -> Reading:
    """What a model of one question says."""
    reading = Reading(
        name=files[0].name,
        files=tuple(files),
        prepared=np.full(image.shape, 0.5, dtype=np.float32),
        probabilities={"positive": 0.8312345678},
        points=(
            PointReading(output="positive", name="screening", threshold=0.25, reached=True),
            PointReading(output="positive", name="confirming", threshold=0.95, reached=False),
        ),
        statements={
            "positive": "In the study's test 30 of 40 patients with such a score had a positive label."
        },
    )
    return replace(reading, **changes)


def masked(
    files: list[Path], image: Image, mask: npt.NDArray[np.uint8] | None = None, **changes: object
) -> Reading:
    """What a model of two structures says."""
    shape = image.shape[1:]
    if mask is None:
        mask = np.zeros(shape, dtype=np.uint8)
        middle = tuple(slice(size // 3, 2 * size // 3) for size in shape)
        mask[middle] = 1
        mask[tuple(size // 2 for size in shape)] = 2
    reading = Reading(
        name=files[0].name,
        files=tuple(files),
        prepared=np.full(image.shape, 0.5, dtype=np.float32),
        probabilities={"liver": 0.99, "tumour": 0.75},
        mask=mask,
    )
    return replace(reading, **changes)


def spreads() -> dict[str, Spread]:
    """How far three models differ."""
    return {"positive": Spread(deviation=0.04, low=0.78, high=0.88)}


def picture(rows: int = 96, columns: int = 128) -> npt.NDArray[np.uint8]:
    """Some RGB picture."""
    made = np.zeros((rows, columns, 3), dtype=np.uint8)
    made[..., 0] = np.linspace(0, 255, columns).astype(np.uint8)
    made[..., 1] = np.linspace(0, 255, rows).astype(np.uint8)[:, None]
    return made


def errors_of(path: Path) -> list[str]:
    """What dciodvfy finds wrong."""
    found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    told = (found.stdout + found.stderr).splitlines()
    assert any(line.strip() and not line.startswith("Warning") for line in told), (
        "it says which IOD it checked"
    )
    return [line for line in told if line.startswith("Error")]


def _radiograph(folder: Path, *, hospital: int) -> list[Path]:
    caseload = phantom_caseloads(PhantomSource(num_hospitals=2, patients_per_hospital=2), seed=1)[hospital]
    image = caseload.cases[0].images[0]
    return [_written(folder / "radiograph.dcm", dicom_bytes(image.header, image.picture()))]


def _photograph(folder: Path) -> list[Path]:
    pixels = np.random.default_rng(1).integers(0, 255, (45, 61, 3), dtype=np.uint8)
    stream = BytesIO()
    Pillow.fromarray(pixels).save(stream, "JPEG", quality=90)
    header = Header(
        dataset="photographs",
        hospital="hospital-1",
        subject=Subject(patient_id="P-1", name="Phantom^Skin", sex="F", age_years=44),
        kind="photograph",
    )
    return [_written(folder / "photograph.dcm", dicom_bytes(header, JpegPicture(stream=stream.getvalue())))]


def _series(folder: Path) -> list[Path]:
    source = NodulePhantomSource(num_hospitals=2, patients_per_hospital=2)
    images = nodule_caseloads(source, seed=1)[1].cases[0].images
    study = images[0].header.study
    return [
        _written(folder / f"{number:03d}.dcm", dicom_bytes(image.header, image.picture()))
        for number, image in enumerate(images)
        if image.header.study == study
    ]


def _enhanced(folder: Path) -> list[Path]:
    path = write_enhanced(folder / "enhanced.dcm")
    return [_with_frame_of_reference(path)]


def _oblique(folder: Path) -> list[Path]:
    return [_with_frame_of_reference(path) for path in write_series(folder, kind="oblique")]


def _clip(folder: Path) -> list[Path]:
    """An ultrasound clip of five frames without a frame of reference."""
    (path,) = _radiograph(folder, hospital=0)
    made = dcmread(path)
    frames = np.stack([made.pixel_array] * 5)
    made.SOPClassUID, made.Modality = UltrasoundMultiFrameImageStorage, "US"
    made.NumberOfFrames, made.PixelData = len(frames), frames.tobytes()
    return [write(folder / "clip.dcm", made)]


def _with_frame_of_reference(path: Path) -> Path:
    made = dcmread(path)
    made.FrameOfReferenceUID = derived_uid("frame", str(made.SeriesInstanceUID))
    made.save_as(path)
    return path


def _written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


SOURCES = {
    "digital-x-ray": Kind(lambda folder: _radiograph(folder, hospital=0)),
    "computed-radiography": Kind(lambda folder: _radiograph(folder, hospital=1)),
    "photograph": Kind(_photograph),
    "clip": Kind(_clip, frame=2),
    "series": Kind(_series, volume=True),
    "oblique-series": Kind(_oblique, volume=True),
    "enhanced-series": Kind(_enhanced, volume=True),
}


def image_of(kind: Kind) -> Image:
    """What the test studies want of a source."""
    return volume_image() if kind.volume else plane_image()


def changed(path: Path, **attributes: object) -> Path:
    """Write a file again with other attributes; None removes one."""
    made = dcmread(path)
    for keyword, value in attributes.items():
        if value is not None:
            setattr(made, keyword, value)
        elif keyword in made:
            del made[keyword]
    made.save_as(path)
    return path


def sequences_in(made: Dataset) -> list[Dataset]:
    """All items at any depth."""
    return [item for element in made.iterall() if element.VR == "SQ" for item in element.value]
