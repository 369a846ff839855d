"""A model's card and its file: what is in it, and that whatever was changed in it is refused in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from studies import ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS, make_study
from trained_models import counts_of, model_file, trained

from server.checkpoint import Progress
from server.model_file import card_of
from server.result import build_result
from server.subgroups import released
from shared_models.model_card import (
    MIN_STATEMENT_PATIENTS,
    WIDEST_STATEMENT,
    CardBin,
    CardError,
    CardInterval,
    CardOutput,
    ModelCard,
)
from shared_models.model_file import ModelFileError, digest_of, model_bytes, read_model

POINTS = {
    "unnoised = true": 'unnoised = true\noperating_points = [{ name = "sensitive", sensitivity = 0.9 }]',
}


def content(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def told(path: Path) -> str:
    """What is said of a file that is refused: one sentence, which begins with its path."""
    with pytest.raises(ModelFileError) as error:
        read_model(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("table", [ONE_QUESTION, THREE_CLASSES, TWO_FINDINGS])
def test_a_file_holds_the_model_and_its_whole_card(tmp_path: Path, table: str) -> None:
    study = make_study({ONE_QUESTION: table, **POINTS})
    model = trained(tmp_path, study, seed=3)
    card = model.card
    assert card.study == study
    assert card.study_hash == study.hash
    assert (card.rounds, card.kept_round, card.num_sites) == (1, 1, 2)
    assert card.outputs == tuple(model.task.output_names)
    assert card.test["auroc"].value is not None
    assert card.test["auroc"].interval is not None
    for output in card.outputs:
        assert [point.name for point in card.points(output)] == ["0.5", "sensitive"]
        found = card.output(output)
        assert found is not None
        assert len(found.calibration) >= 5
    assert ModelCard.from_json(card.to_json()) == card
    assert not model.model.training
    assert read_model(tmp_path / "model.safetensors").digest == model.digest
    _, arrays = content(tmp_path / "model.safetensors")
    for name, weight in model.model.named_parameters():
        np.testing.assert_array_equal(weight.numpy(), arrays[name])


def test_the_digest_is_over_the_card_and_every_weight(tmp_path: Path) -> None:
    model_file(tmp_path / "m.safetensors", make_study())
    metadata, arrays = content(tmp_path / "m.safetensors")
    digest = digest_of(metadata["card"], arrays)
    assert digest == metadata["digest"]
    assert digest_of(metadata["card"] + " ", arrays) != digest
    for name, array in arrays.items():
        flipped = array.copy().ravel()
        flipped[-1] = np.nextafter(flipped[-1], np.float32(9.0))
        assert digest_of(metadata["card"], {**arrays, name: flipped.reshape(array.shape)}) != digest
        assert digest_of(metadata["card"], {**arrays, name: array[np.newaxis]}) != digest


def test_an_edited_card_is_refused(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.safetensors", make_study())
    metadata, arrays = content(path)
    edited = metadata["card"].replace('"num_sites":2', '"num_sites":9')
    assert edited != metadata["card"]
    save_file(arrays, path, metadata={**metadata, "card": edited})
    assert "one of them was changed" in told(path)


def test_edited_weights_are_refused(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.safetensors", make_study())
    metadata, arrays = content(path)
    arrays["head.bias"] = arrays["head.bias"] + 1
    save_file(arrays, path, metadata=metadata)
    assert "one of them was changed" in told(path)


def test_weights_of_another_run_under_this_card_are_refused(tmp_path: Path) -> None:
    path, other = (model_file(tmp_path / f"{seed}.safetensors", make_study(), seed=seed) for seed in (1, 2))
    save_file(content(other)[1], path, metadata=content(path)[0])
    assert "one of them was changed" in told(path)


@pytest.mark.parametrize("kept", [0, 5, 200, 5000, -1])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    path = model_file(tmp_path / "m.safetensors", make_study())
    path.write_bytes(path.read_bytes()[:kept])
    assert "cut short" in told(path)


def test_any_changed_byte_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = model_file(tmp_path / "m.safetensors", make_study()).read_bytes()
    path = tmp_path / "changed.safetensors"
    for place in np.random.default_rng(1).integers(0, len(whole), 25):
        changed = bytearray(whole)
        changed[place] ^= 0x01
        path.write_bytes(changed)
        told(path)


def test_what_is_no_model_of_a_study_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    assert "cannot be read (No such file or directory)" in told(path)
    path.write_text("hello")
    assert "no safetensors file" in told(path)
    save_file({"a": np.zeros(3, dtype=np.float32)}, path)
    assert "has no card" in told(path)
    save_file({"a": np.zeros(3, dtype=np.float32)}, path, metadata={"format": "collegium-model-1"})
    assert "first format" in told(path)
    save_file({"a": np.zeros(3, dtype=np.float64)}, path, metadata={"format": "collegium-model-2"})
    assert "not float32" in told(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda card, arrays: ({**card, "colour": "red"}, arrays), "colour"),
        (
            lambda card, arrays: ({**card, "study_hash": "0" * 64}, arrays),
            "study_hash is not that of the study",
        ),
        (lambda card, arrays: ({**card, "manifest_hash": "0" * 64}, arrays), "not those that its card names"),
        (lambda card, arrays: ({**card, "outputs": ["other"]}, arrays), "outputs are not those of its study"),
        (lambda card, arrays: (card, {**arrays, "more": np.zeros(1, np.float32)}), "other names or shapes"),
        (
            lambda card, arrays: (card, {**arrays, "head.bias": np.array([np.nan], np.float32)}),
            "no finite numbers",
        ),
    ],
)
def test_a_file_whose_digest_was_made_anew_must_still_fit_together(
    tmp_path: Path, change, sentence: str
) -> None:
    path = model_file(tmp_path / "m.safetensors", make_study())
    metadata, arrays = content(path)
    card, arrays = change(json.loads(metadata["card"]), arrays)
    text = json.dumps(card)
    digest = digest_of(text, arrays)
    save_file(arrays, path, metadata={**metadata, "card": text, "digest": digest})
    message = told(path)
    assert sentence in message
    assert "use the version that it was trained with" in message


def test_weights_that_were_not_trained_are_in_the_file_and_are_checked(tmp_path: Path) -> None:
    study = make_study({"width = 8": 'width = 8\ntrainable = "head"'})
    path = model_file(tmp_path / "m.safetensors", study, seed=5)
    image = torch.rand(2, *study.image.shape)
    assert read_model(path).model(image).shape == (2, 1)
    metadata, arrays = content(path)
    frozen = next(name for name in arrays if not name.startswith("head"))
    arrays[frozen] = arrays[frozen] * 2
    digest = digest_of(metadata["card"], arrays)
    save_file(arrays, path, metadata={**metadata, "digest": digest})
    assert "not those that its card names" in told(path)


def test_a_refused_card_is_not_quoted() -> None:
    with pytest.raises(CardError) as error:
        ModelCard.from_json('{"format": "Oftering^Walburga"}')
    assert "Oftering" not in str(error.value)


@pytest.mark.slow
def test_a_private_studys_card_says_what_was_promised(tmp_path: Path) -> None:
    card = trained(tmp_path, make_study(private=True)).card
    assert card.privacy.mode == "local"
    assert card.privacy.epsilon is not None
    assert card.privacy.epsilon <= 5.0
    assert card.privacy.delta == 1e-4
    assert card.privacy.unit == "patient"
    assert card.test_noise > 0
    assert card.test["auroc"].noise is not None
    assert any("noise" in limit for limit in card.limits)


def test_a_run_without_a_test_has_a_card_that_says_so(tmp_path: Path) -> None:
    card = trained(tmp_path, make_study(), tested=False).card
    assert card.test == {}
    assert card.by_output == ()
    assert any("not tested" in limit for limit in card.limits)
    assert card.points("positive") == ()
    assert card.statement("positive", 0.5) is None


def test_a_card_names_no_hospital(tmp_path: Path) -> None:
    metadata, _ = content(model_file(tmp_path / "m.safetensors", make_study()))
    assert "north" not in metadata["card"]


def test_groups_that_may_not_be_told_are_not_in_the_card(tmp_path: Path) -> None:
    study = make_study({"unnoised = true": 'unnoised = true\nsubgroups = ["sex"]\nmin_subgroup = 20'})
    num = counts_of(study)
    few = tuple(int(value) for value in 12 * np.eye(len(num), dtype=int)[0])
    told_of = released(study, np.array([*num, *num, *few, *few]), margin=0.0)
    assert set(told_of) == {"sex/female", "sex/male"}
    progress = Progress(
        run_id="run", study_hash=study.hash, test=num, groups=told_of, tested=("north", "south")
    )
    result = build_result(study, progress, engine="local", refusals={})
    card = card_of(study, result, manifest_hash="0" * 64)
    assert {(one.attribute, one.name) for one in card.subgroups} == {("sex", "female"), ("sex", "male")}
    assert "by age, by maker of the scanner" in " ".join(card.limits)
    assert any("by sex, 2 are not told" in limit for limit in card.limits)


def stated(num: float, observed: float, low: float, high: float, *, noise: float = 0.0) -> str | None:
    """What is stated of a score of ½ where *num* patients had one like it."""
    bins = (
        CardBin(low=0.0, high=0.5, num_patients=9.0, predicted=0.2, observed=0.1, interval=None),
        CardBin(
            low=0.5,
            high=1.0,
            num_patients=num,
            predicted=0.7,
            observed=observed,
            interval=CardInterval(low=low, high=high, method="wilson"),
        ),
    )
    output = CardOutput(name="mass", num_negative=60.0, num_positive=40.0, points=(), calibration=bins)
    card = ModelCard.model_construct(by_output=(output,), test_noise=noise)
    return card.statement("mass", 0.5)


def test_a_statement_names_the_counts_their_interval_and_how_many_had_it_in_all() -> None:
    assert stated(40.0, 0.85, 0.71, 0.93) == (
        "In the study's test 34 of 40 patients with a score of 0.5 to 1 had “mass” (95 % interval 71% to 93%); of all "
        "its patients 40% had."
    )
    noised = stated(40.0, 0.85, 0.66, 0.99, noise=2.0)
    assert noised is not None
    assert "about 34 of about 40 patients" in noised


@given(
    num=st.floats(0, 1000),
    low=st.floats(0, 1),
    width=st.floats(0, 1),
)
def test_nothing_is_stated_of_few_patients_or_where_the_interval_is_wide(
    num: float, low: float, width: float
) -> None:
    high = min(1.0, low + width)
    is_stated = stated(num, (low + high) / 2, low, high) is not None
    assert is_stated == (num >= MIN_STATEMENT_PATIENTS and high - low <= WIDEST_STATEMENT)


def test_a_score_of_one_is_in_the_last_group_and_one_outside_all_in_none(tmp_path: Path) -> None:
    card = trained(tmp_path, make_study(), test=[50] * 41).card
    assert card.statement("positive", 1.0) == card.statement("positive", 0.9999)
    assert card.statement("positive", 1.0) is not None
    assert card.statement("positive", float("nan")) is None
    assert card.statement("other", 0.5) is None


def test_the_same_model_and_card_make_the_same_bytes(tmp_path: Path) -> None:
    model = trained(tmp_path, make_study())
    _, arrays = content(tmp_path / "model.safetensors")
    made, digest = model_bytes(model.card, arrays)
    assert digest == model.digest
    assert made == (tmp_path / "model.safetensors").read_bytes()
