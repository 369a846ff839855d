"""Maps of what spoke for a reading: exact where they can be, near a known lesion, gone with the weights."""

import stat
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from explained_models import CORNERS, SIDE, corner_model, corner_study, reading_of, trained, with_square
from PIL import Image as Pillow
from scipy.stats import spearmanr
from series_files import volume_study
from studies import ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS, make_study

pytest.importorskip("captum", reason="the extra explanations is not installed")

from client.prediction.explained import Explained, Pictures
from client.prediction.explanations.attribution import Attribution, ExplanationRefused, Method
from client.prediction.explanations.colours import (
    SMALLEST_SCALE,
    STRUCTURES,
    colour_table,
    scale_end,
    structure_colour,
)
from client.prediction.explanations.contours import edge
from client.prediction.explanations.explainer import Explainer
from client.prediction.explanations.grad_cam import grad_cam, signed_maps
from client.prediction.explanations.log_odds import log_odds
from client.prediction.explanations.occlusion import occlusion, window_of
from client.prediction.explanations.overlay import overlay
from client.prediction.explanations.picture import WIDTH, picture_png
from client.prediction.explanations.slices import chosen_slice, neighbours
from client.prediction.reading import Plane, Reading
from shared_models.architectures import BUILDS, build_network
from shared_models.catalogue import CATALOGUE
from shared_models.model_file import TrainedModel
from shared_models.networks.network import Classifier
from shared_models.study import Image, Model

CLASSIFIERS = [name for name, one in CATALOGUE.items() if not one.dense]


def network_of(architecture: str, num_outputs: int = 3) -> tuple[Classifier, torch.Tensor]:
    """A network of the catalogue with the weights of its seed, and an image for it."""
    side = 32
    image = Image(modalities=("CR",), channels=1, rows=side, columns=side)
    network = build_network(Model(architecture=architecture, width=16), image, num_outputs=num_outputs)
    assert isinstance(network, Classifier)
    shape = (1, *(side,) * CATALOGUE[architecture].dimensions)
    drawn = torch.Generator().manual_seed(5)
    return network.eval().requires_grad_(False), torch.rand(shape, generator=drawn)


def asked(model: TrainedModel, prepared: Plane) -> Reading:
    with torch.no_grad():
        chances = model.model(torch.from_numpy(prepared)[None]).sigmoid()[0]
    return reading_of(
        prepared, {name: float(chance) for name, chance in zip(model.card.outputs, chances, strict=True)}
    )


# Exactness


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_log_odds_are_those_of_the_probability(activation: str) -> None:
    logits = torch.randn(5, 4, dtype=torch.float64)
    chance = logits.sigmoid()[:, 2] if activation == "sigmoid" else logits.softmax(1)[:, 2]
    found = log_odds(logits, 2, activation)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.log(chance / (1 - chance)))


@pytest.mark.parametrize("architecture", [name for name in CLASSIFIERS if name != "scattering"])
def test_grad_cam_adds_up_to_what_the_image_adds_to_the_bias(architecture: str) -> None:
    """Its mean over places is the logit without the head's bias: the network has no other path to the output."""
    network, image = network_of(architecture)
    signed = signed_maps(network, image, output=1, activation="sigmoid")
    with torch.no_grad():
        expected = network(image[None])[0, 1] - network.head.bias[1]  # type: ignore[index]
    torch.testing.assert_close(signed.mean(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_maps_have_the_images_size_and_nothing_below_zero(architecture: str) -> None:
    network, image = network_of(architecture)
    found = []
    if network.has_maps:
        found.append(grad_cam(network, image, output=1, activation="softmax"))
    if architecture in ("small-cnn", "scattering", "resnet-18"):
        found.append(occlusion(network, image, output=1, activation="softmax", at_a_time=16))
    for values in found:
        assert values.shape == image.shape[1:]
        assert values.dtype == torch.float32
        assert values.min() >= 0.0
        assert values.isfinite().all()
    assert all(weight.grad is None for weight in network.parameters())


def test_occlusion_is_what_each_window_takes_away() -> None:
    """A model that adds up pixels with weights of its own: what is lost can be said by hand."""

    class Weighted(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return (images * places).flatten(1).sum(1, keepdim=True)

    places = torch.zeros(1, 1, 16, 16)
    places[..., 4:6, 8:10] = 1.0
    image = torch.zeros(1, 16, 16)
    image[:, 4:6, 8:10] = 0.8
    found = occlusion(Weighted(), image, output=0, activation="sigmoid", at_a_time=3)  # type: ignore[arg-type]
    window = window_of((16, 16))
    assert window == (2, 2)
    mean = float(image.mean())
    assert found[4, 8] == pytest.approx(sum((0.8 - mean) * pixels for pixels in (1, 2, 2, 4)) / 4, rel=1e-5)
    assert found[10:].abs().max() < 1e-6


# Sanity checks (Adebayo and others 2018), and a lesion whose place is known


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return corner_model()


def random_twin(seed: int) -> TrainedModel:
    study = corner_study()
    other = study.model.model_copy(update={"seed": seed})
    return trained(study, build_network(other, study.image, num_outputs=1))


def coarse_map(model: TrainedModel, image: Plane, method: Method) -> Plane:
    """On the grid that the map has before it is enlarged; of Grad-CAM with what speaks against the output too."""
    if method is Method.OCCLUSION:
        return Explainer([model], method)(asked(model, image)).values[4::8, 4::8]
    assert isinstance(model.model, Classifier)
    return signed_maps(model.model, torch.from_numpy(image), output=0, activation="sigmoid").numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "num_seeds"),
    [(Method.GRAD_CAM, 12), pytest.param(Method.OCCLUSION, 5, marks=pytest.mark.thorough)],
)
def test_other_weights_give_another_map(model: TrainedModel, method: Method, num_seeds: int) -> None:
    images = [with_square(7000 + number, corner=CORNERS[number % 4]) for number in range(4)]
    maps = [coarse_map(model, image, method) for image in images]
    correlations = []
    for seed in range(100, 100 + num_seeds):
        twin = random_twin(seed)
        found = [
            spearmanr(own.ravel(), coarse_map(twin, image, method).ravel()).statistic
            for image, own in zip(images, maps, strict=True)
        ]
        correlations.append(np.mean(found))
    assert max(correlations) < 0.6, correlations
    assert abs(np.mean(correlations)) < 0.3, correlations


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [Method.GRAD_CAM, pytest.param(Method.OCCLUSION, marks=pytest.mark.thorough)]
)
def test_next_to_the_same_weights_give_next_to_the_same_map(model: TrainedModel, method: Method) -> None:
    """So that the test before does not pass for a measure that finds everything different."""
    image = with_square(7001, corner=CORNERS[1])
    twin = random_twin(1)
    twin.model.load_state_dict({name: value * 1.001 for name, value in model.model.state_dict().items()})
    both = [coarse_map(one, image, method).ravel() for one in (model, twin)]
    assert spearmanr(*both).statistic > 0.95


def in_quadrant(values: Plane, corner: tuple[int, int]) -> float:
    """Share of a map that lies in one quadrant: a quarter by chance."""
    half = SIDE // 2
    part = values[corner[0] * half : (corner[0] + 1) * half, corner[1] * half : (corner[1] + 1) * half]
    return float(part.sum() / values.sum()) if values.any() else 0.0


def points_into(values: Plane, corner: tuple[int, int]) -> bool:
    """Whether the largest value lies in this quadrant."""
    place = np.unravel_index(values.argmax(), values.shape)
    return bool(values.any()) and tuple(int(one) // (SIDE // 2) for one in place) == corner


@pytest.mark.slow
@pytest.mark.parametrize(("method", "share"), [(Method.GRAD_CAM, 0.4), (Method.OCCLUSION, 0.8)])
def test_the_map_of_a_model_that_learnt_lies_where_the_lesion_is(
    model: TrainedModel, method: Method, share: float
) -> None:
    explain = Explainer([model], method)
    shares, hits = [], 0
    for number in range(16):
        corner = CORNERS[number % 4]
        values = explain(asked(model, with_square(5000 + number, corner=corner))).values
        shares.append(in_quadrant(values, corner))
        hits += points_into(values, corner)
    assert np.mean(shares) > share
    assert hits >= 14


@pytest.mark.thorough
def test_the_same_measure_finds_chance_in_models_that_learnt_nothing() -> None:
    shares, hits, asked_for = [], 0, 0
    for seed in range(100, 108):
        explain = Explainer([random_twin(seed)], Method.GRAD_CAM)
        for number in range(8):
            corner = CORNERS[number % 4]
            values = explain(reading_of(with_square(number, corner=corner), {"positive": 0.5})).values
            if values.any():
                asked_for += 1
                shares.append(in_quadrant(values, corner))
                hits += points_into(values, corner)
    assert asked_for >= 16
    assert np.mean(shares) < 0.4
    assert hits / asked_for < 0.75


# What is explained, and what is refused


def test_of_several_classes_the_most_probable_one_is_explained_or_the_one_asked_for() -> None:
    study = make_study(
        {ONE_QUESTION: THREE_CLASSES, "rows = 16": "rows = 32", "columns = 16": "columns = 32"}
    )
    model = trained(study)
    reading = reading_of(
        np.random.default_rng(1).random((1, 32, 32), dtype=np.float32),
        {"clear lungs": 0.2, "opacity": 0.5, "mass": 0.3},
    )
    assert Explainer([model], Method.GRAD_CAM)(reading).output == "opacity"
    named = Explainer([model], Method.GRAD_CAM, output="mass")(reading)
    assert named.output == "mass"
    image = torch.from_numpy(reading.prepared)
    expected = grad_cam(model.model, image, output=2, activation="softmax")  # type: ignore[arg-type]
    np.testing.assert_array_equal(named.values, expected.numpy())


def test_the_map_of_several_models_is_the_mean_of_theirs() -> None:
    study = make_study({ONE_QUESTION: TWO_FINDINGS})
    models = [
        trained(study),
        trained(study, BUILDS["small-cnn"](Model(architecture="small-cnn", width=8, seed=9), study.image, 2)),
    ]
    reading = reading_of(
        np.random.default_rng(1).random((1, 16, 16), dtype=np.float32), {"opacity": 0.5, "effusion": 0.1}
    )
    single = [Explainer([one], Method.OCCLUSION)(reading).values for one in models]
    np.testing.assert_allclose(Explainer(models, Method.OCCLUSION)(reading).values, np.mean(single, axis=0))


def test_a_volume_has_a_map_of_its_slices() -> None:
    image = volume_study().image.model_copy(update={"depth": 8, "rows": 16, "columns": 16})
    model = trained(volume_study(image))
    prepared = np.random.default_rng(1).random(model.image.shape, dtype=np.float32)
    for method in Method:
        assert Explainer([model], method)(asked(model, prepared)).values.shape == prepared.shape[1:]


def segmentation_model() -> TrainedModel:
    text = 'kind = "segmentation"\nstructures = [{ name = "lung" }]\n'
    return trained(make_study({ONE_QUESTION: text, 'architecture = "small-cnn"': 'architecture = "unet"'}))


@pytest.mark.slow
def test_what_cannot_be_explained_is_refused_in_a_sentence() -> None:
    fixed = make_study({'architecture = "small-cnn"\nwidth = 8': 'architecture = "scattering"'})
    with pytest.raises(ExplanationRefused, match=r"scattering.*ask for occlusion"):
        Explainer([trained(fixed)], Method.GRAD_CAM)
    reading = reading_of(np.random.default_rng(1).random((1, 16, 16), dtype=np.float32), {"positive": 0.5})
    assert Explainer([trained(fixed)], Method.OCCLUSION)(reading).values.shape == (16, 16)
    for method in Method:
        with pytest.raises(ExplanationRefused, match=r"contours of its structures"):
            Explainer([segmentation_model()], method)
    with pytest.raises(ExplanationRefused, match=r"has no output “opacity”; it has positive"):
        Explainer([trained(make_study())], Method.OCCLUSION, output="opacity")
    single = corner_study(
        image={**corner_study().image.model_dump(), "rows": 32, "columns": 32},
        model={"architecture": "resnet-18", "width": 8},
    )
    with pytest.raises(ExplanationRefused, match=r"single place for images of this size"):
        Explainer([trained(single)], Method.GRAD_CAM)


# Pictures


def map_of(values: Plane) -> Attribution:
    return Attribution(method=Method.GRAD_CAM, output="positive", values=values)


def test_colours_say_how_much_and_a_pale_map_stays_pale() -> None:
    grey = np.full((1, 8, 8), 0.5, dtype=np.float32)
    reading = reading_of(grey, {"positive": 0.5})
    plain = overlay(reading)
    assert plain.shape == (8, 8, 3)
    assert (plain == 128).all()
    values = np.zeros((8, 8), dtype=np.float32)
    values[2, 3], values[5, 5] = 4.0, 2.0
    shown = overlay(reading, map_of(values))
    assert (shown[0, 0] == 128).all()
    assert tuple(shown[2, 3]) == tuple(np.round(128 * 0.25 + colour_table()[255] * 0.75).astype(np.uint8))
    faint = map_of(values / 4.0 * 0.01)
    assert scale_end(faint) == SMALLEST_SCALE
    assert np.abs(overlay(reading, faint).astype(int) - 128).max() < 8


def test_colours_of_structures_and_of_the_scale_differ_for_colour_blind_eyes() -> None:
    """Lightness of the scale only grows; structures differ in lightness, or in the blue that all but few see."""
    lightness = colour_table().astype(float) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > -1.0).all()
    assert lightness[-1] - lightness[0] > 150
    for number, one in enumerate(STRUCTURES):
        for other in STRUCTURES[number + 1 :]:
            luminance = [np.dot(colour, (0.2126, 0.7152, 0.0722)) for colour in (one, other)]
            assert abs(luminance[0] - luminance[1]) > 8 or abs(one[2] - other[2]) > 60, (one, other)
    assert structure_colour(8) == structure_colour(1)


def test_the_contour_is_the_edge_of_each_structure() -> None:
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:6, 2:5], mask[2:6, 5:8] = 1, 2
    expected = mask > 0
    expected[3:5, 3] = False
    expected[3:5, 6:] = False
    np.testing.assert_array_equal(edge(mask), expected)
    shown = overlay(reading_of(np.zeros((1, 8, 8), dtype=np.float32), {"a": 0.9, "b": 0.9}, mask=mask))
    assert tuple(shown[2, 2]) == STRUCTURES[0]
    assert tuple(shown[2, 7]) == STRUCTURES[1]
    assert tuple(shown[3, 3]) == (0, 0, 0)


def test_of_a_volume_the_slice_of_the_maps_maximum_is_shown() -> None:
    prepared = np.zeros((1, 9, 8, 8), dtype=np.float32)
    reading = reading_of(prepared, {"positive": 0.5})
    assert chosen_slice(reading) == 4
    values = np.zeros((9, 8, 8), dtype=np.float32)
    assert chosen_slice(reading, map_of(values)) == 4
    values[7, 1, 1] = 0.3
    assert chosen_slice(reading, map_of(values)) == 7
    assert (overlay(reading, map_of(values))[1, 1] > 0).any()
    assert (overlay(reading, map_of(values), slice_number=6) == 0).all()
    mask = np.zeros((9, 8, 8), dtype=np.uint8)
    mask[2, 2:4, 2:4] = 1
    assert chosen_slice(reading_of(prepared, {"lung": 0.5}, mask=mask)) == 2


@pytest.mark.parametrize("of", [1, 2, 4, 9, 40, 64])
def test_neighbours_are_slices_of_the_volume_and_the_chosen_one_is_among_them(of: int) -> None:
    for number in range(of):
        found = neighbours(number, of, most=5)
        assert number in found
        assert len(found) <= 5
        assert len(found) == min(5, of) or of > 15
        assert list(found) == sorted(set(found))
        assert found[0] >= 0 and found[-1] < of


@pytest.mark.slow
def test_pictures_are_numbered_as_readings_are_and_private(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path / "overlays", structures=("lung",))
    model = trained(make_study())
    explained = Explained([Explainer([model], method) for method in Method], [pictures])
    for number in range(2):
        explained.write(reading_of(with_square(number, corner=(0, 0))[:, :16, :16], {"positive": 0.5}))
    mask = np.ones((16, 16), dtype=np.uint8)
    Explained([], [pictures]).write(
        reading_of(np.zeros((1, 16, 16), dtype=np.float32), {"lung": 0.9}, mask=mask)
    )
    explained.finish()
    found = sorted((tmp_path / "overlays").iterdir())
    assert [path.name for path in found] == [
        "00001-grad-cam.png",
        "00001-occlusion.png",
        "00002-grad-cam.png",
        "00002-occlusion.png",
        "00003-contours.png",
    ]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in found)
    assert stat.S_IMODE((tmp_path / "overlays").stat().st_mode) == 0o700


@pytest.mark.slow
def test_a_picture_says_what_colours_mean_and_what_was_overridden_and_names_nobody() -> None:
    values = np.zeros((9, 8, 8), dtype=np.float32)
    values[7, 1, 1] = 3.0
    reading = Reading(
        name="DOE_JANE.dcm",
        files=(),
        prepared=np.full((1, 9, 8, 8), 0.3, dtype=np.float32),
        probabilities={"positive": 0.5},
        overrides=("It is of another modality than the model was trained for.",),
    )
    data = picture_png(reading, map_of(values))
    assert b"DOE" not in data
    picture = np.asarray(Pillow.open(BytesIO(data)).convert("RGB"))
    assert picture.shape[1] == WIDTH
    red = (picture.astype(int) @ np.array([1, -1, 0]) > 60).any(axis=1)
    without = picture_png(
        Reading(name="x", files=(), prepared=reading.prepared, probabilities=reading.probabilities),
        map_of(values),
    )
    assert len(picture) > len(np.asarray(Pillow.open(BytesIO(without))))
    assert red[-60:].any()
    for colour in (colour_table()[0], colour_table()[255]):
        assert (picture == colour).all(axis=2).any()
