"""ONNX files: equal to the model or not written, with its card, and smaller where they have eight bits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_files import Hospital, dataset
from explained_models import card_of, trained
from studies import ONE_QUESTION, THREE_CLASSES, make_study
from torch import nn
from typer.testing import CliRunner

pytest.importorskip("onnxscript", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("onnx", reason="the extra export is not installed")

import onnx

from client.command import app
from client.prediction.onnx_export import quantisation
from client.prediction.onnx_export.check import TOLERANCE, OnnxModel, check, difference, edge_inputs
from client.prediction.onnx_export.errors import ExportRefused
from client.prediction.onnx_export.exact_norms import ExactGroupNorm, with_exact_norms
from client.prediction.onnx_export.graph import FORMAT, onnx_bytes
from shared_models.architectures import outline
from shared_models.catalogue import CATALOGUE
from shared_models.model_card import ModelCard
from shared_models.model_file import TrainedModel, model_bytes
from shared_models.study import Image, Study

SEGMENTATION = """kind = "segmentation"
structures = [{ name = "lung", values = [1] }, { name = "heart", values = [2] }]
"""
QUICK = ("small-cnn",)
SLOW = ("small-cnn-3d", "resnet-18", "unet")


def study_of(architecture: str) -> Study:
    """A study with this network, as small as it may be."""
    one = CATALOGUE[architecture]
    changes = {ONE_QUESTION: SEGMENTATION if one.dense else THREE_CLASSES}
    base = make_study(changes | ({'"small-cnn"': '"unet"'} if one.dense else {}))
    side = 32
    image = Image(modalities=("CR",), channels=1, rows=side, columns=side)
    if one.dimensions == 3:
        image = Image(
            modalities=("CT",),
            channels=1,
            rows=side,
            columns=side,
            depth=side,
            spacing=1.0,
            slice_spacing=1.0,
            intensity="hounsfield",
            window_center=0.0,
            window_width=400.0,
        )
    model = {"architecture": architecture, "seed": 3} | ({} if architecture == "scattering" else {"width": 8})
    return Study.model_validate({**base.model_dump(), "image": image.model_dump(), "model": model})


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return trained(study_of("small-cnn"))


@pytest.fixture(scope="module")
def data(model: TrainedModel) -> bytes:
    return onnx_bytes(model)


def write_model(path: Path, study: Study) -> str:
    network = outline(study)
    arrays = {name: weight.detach().numpy() for name, weight in network.named_parameters()}
    content, digest = model_bytes(card_of(study, network), arrays)
    path.write_bytes(content)
    return digest


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    return done.exit_code, " ".join(done.output.split()) or str(done.exception)


# Equality


@pytest.mark.parametrize("shape", [(2, 16, 9, 7), (3, 24, 5, 4, 6), (1, 8, 1, 1)])
def test_exact_norms_are_group_norms(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, shape[1])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    features = torch.randn(shape) * 3 + 2
    torch.testing.assert_close(ExactGroupNorm(norm)(features), norm(features), rtol=1e-5, atol=1e-5)


def test_the_model_itself_keeps_its_norms(model: TrainedModel) -> None:
    copied = with_exact_norms(model.model)
    assert not [one for one in copied.modules() if isinstance(one, nn.GroupNorm)]
    assert [one for one in model.model.modules() if isinstance(one, nn.GroupNorm)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(
            name, marks=() if name in QUICK else pytest.mark.slow if name in SLOW else pytest.mark.thorough
        )
        for name in CATALOGUE
        if name != "scattering"
    ],
)
def test_outputs_equal_the_models_on_random_and_on_edge_inputs(architecture: str) -> None:
    found = trained(study_of(architecture))
    inputs = edge_inputs(found.image.shape)
    assert check(found, onnx_bytes(found), inputs) <= TOLERANCE == 1e-4
    assert {len(images) for images in inputs.values()} == {1, 3}


@pytest.mark.slow
def test_a_file_that_differs_is_refused(model: TrainedModel, data: bytes) -> None:
    other = trained(study_of("small-cnn"))
    assert check(other, data, edge_inputs(other.image.shape)) < TOLERANCE
    with torch.no_grad():
        other.model.head.bias[1] += 3e-4  # type: ignore[index]
    with pytest.raises(
        ExportRefused, match=r"differ from those of model.safetensors by [0-9.e-]+ on the input"
    ):
        check(other, data, edge_inputs(other.image.shape))
    with torch.no_grad():
        other.model.head.bias[1] = torch.nan  # type: ignore[index]
    with pytest.raises(ExportRefused, match=r"by inf"):
        check(other, data, edge_inputs(other.image.shape))


# The file


@pytest.mark.slow
def test_the_command_writes_a_checked_file_with_the_card(tmp_path: Path) -> None:
    study = study_of("small-cnn")
    digest = write_model(tmp_path / "model.safetensors", study)
    path = tmp_path / "model.onnx"
    code, output = run("export", tmp_path / "model.safetensors", "--onnx", path)
    assert code == 0, output
    assert "Outputs equal those of model.safetensors within" in output
    assert "Not a medical device" in output
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    told = {entry.key: entry.value for entry in file.metadata_props}
    card = ModelCard.from_json(told["card"])
    assert (told["format"], told["digest"], card.study_hash) == (FORMAT, digest, study.hash)
    assert json.loads(told["outputs"]) == list(card.outputs)
    assert json.loads(told["image"])["rows"] == 32
    assert "prepared as the key image" in told["preparation"]
    dimensions = file.graph.input[0].type.tensor_type.shape.dim
    assert [one.dim_value or one.dim_param for one in dimensions] == ["batch", 1, 32, 32]
    code, output = run("export", tmp_path / "model.safetensors", "--onnx", path)
    assert code == 2 or "is there already" in output


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_no_model_no_file(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    code, output = run("export", tmp_path / "model.safetensors", "--onnx", tmp_path / "model.onnx")
    assert code == 1
    assert "model.safetensors" in output
    assert not (tmp_path / "model.onnx").exists()


def test_scattering_is_refused_in_a_sentence(tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors", study_of("scattering"))
    code, output = run("export", tmp_path / "model.safetensors", "--onnx", tmp_path / "model.onnx")
    assert code == 1
    assert "Fourier transform of complex numbers" in output
    assert not (tmp_path / "model.onnx").exists()


# Eight bits


def mean_difference(model: TrainedModel, data: bytes) -> float:
    images = np.random.default_rng(1).random((8, *model.image.shape), dtype=np.float32)
    return difference(model, OnnxModel(data), images).probabilities


def test_eight_bits_make_the_file_smaller_and_hardly_change_probabilities(
    model: TrainedModel, data: bytes
) -> None:
    images = list(np.random.default_rng(2).random((20, *model.image.shape), dtype=np.float32))
    for small in (quantisation.dynamic(data), quantisation.static(data, images)):
        assert len(small) < 0.8 * len(data)
        assert 1e-6 < mean_difference(model, small) < 0.05


def test_static_quantisation_wants_images(data: bytes) -> None:
    with pytest.raises(ExportRefused, match=r"2 could be read; give a folder with 16 at least"):
        quantisation.static(data, [np.zeros((1, 32, 32), dtype=np.float32)] * 2)


@pytest.mark.thorough
def test_calibration_images_are_prepared_as_the_study_says(tmp_path: Path) -> None:
    study = study_of("small-cnn")
    write_model(tmp_path / "model.safetensors", study)
    hospital = Hospital(tmp_path / "hospital")
    for number in range(18):
        drawn = np.random.default_rng(number).integers(0, 256, (40, 40)).astype(np.uint8)
        hospital.add(f"{number}.dcm", dataset(drawn, patient=f"P{number}"))
    (hospital.images / "notes.txt").write_text("no image")
    options = ("--onnx", tmp_path / "small.onnx", "--int8", "static", "--calibration", hospital.images)
    code, output = run("export", tmp_path / "model.safetensors", *options)
    assert code == 0, output
    assert "On 18 images of --calibration a probability differs by up to" in output
    told = {one.key: one.value for one in onnx.load(tmp_path / "small.onnx").metadata_props}
    assert told["precision"] == "int8-static"


def test_calibration_goes_with_static_only(tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors", study_of("small-cnn"))
    for options in (("--int8", "static"), ("--int8", "dynamic", "--calibration", tmp_path)):
        code, output = run("export", tmp_path / "model.safetensors", "--onnx", tmp_path / "x.onnx", *options)
        assert code != 0
        assert "--calibration FOLDER goes with --int8 static" in output
