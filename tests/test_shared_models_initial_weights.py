"""Initial weights from a file: just the one that the study names, and all of it but the head."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from studies import make_study, write_study_file
from test_simulations_run import quiet, scenario_text
from torch import Tensor

from server.model_file import write_model
from server.weights_file import bring_weights
from shared_models.architectures import build_model, outline
from shared_models.initial_weights import WeightsError
from shared_models.manifest import Manifest
from shared_models.study import Study

FILE = "start.safetensors"
PUBLIC = 'origin = "made-up numbers"'


def content_of(tensors: dict[str, Tensor] | None = None, **changes: Tensor | None) -> bytes:
    """A file that fits the test study's model, with these tensors in place of its own; None leaves one out."""
    fitting = {
        name: torch.full_like(weight, 0.25) for name, weight in outline(make_study()).named_parameters()
    }
    chosen = {**(tensors or fitting), **{name.replace("__", "."): one for name, one in changes.items()}}
    return save({name: one.contiguous() for name, one in chosen.items() if one is not None})


def changes_for(content: bytes, *lines: str) -> dict[str, str]:
    digest = hashlib.sha256(content).hexdigest()
    table = f'\n[model.weights]\nfile = "{FILE}"\nsha256 = "{digest}"\n{PUBLIC}\n'
    return {"seed = 1": "\n".join(["seed = 1", *lines, table])}


def study_with(folder: Path, content: bytes, *lines: str) -> Study:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(content)
    return make_study(changes_for(content, *lines))


def test_training_begins_with_the_files_weights(tmp_path: Path) -> None:
    model = build_model(study_with(tmp_path, content_of()), tmp_path)
    assert all(bool((weight == 0.25).all()) for weight in model.parameters())


def test_a_head_that_differs_or_is_missing_stays_as_the_seed_made_it_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file with a head of ten outputs, one without a weight of the head, and with statistics that have no place."""
    other = content_of(head__weight=torch.ones(10, 32), head__bias=None, running_mean=torch.ones(3))
    seeded = build_model(make_study()).state_dict()
    caplog.set_level("INFO", "collegium.model")
    model = build_model(study_with(tmp_path, other), tmp_path)
    for name, weight in model.named_parameters():
        if name.startswith("head."):
            assert torch.equal(weight, seeded[name]), name
        else:
            assert bool((weight == 0.25).all()), name
    (told,) = caplog.messages
    assert (
        "16 tensors from the file; head.weight, head.bias as the seed made them; of the file 2 without a place"
        in told
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"convolutions__0__weight": None}, "convolutions.0.weight is missing; .*Only the head may differ"),
        (
            {"norms__1__bias": torch.ones(3)},
            r"norms.1.bias has shape \(3,\); the study's model wants \(16,\)",
        ),
        ({"norms__1__bias": torch.full((16,), torch.nan)}, "norms.1.bias holds values that are not finite"),
        ({"norms__1__bias": torch.ones(16, dtype=torch.int64)}, "norms.1.bias holds values that are not"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_tensor_and_what_to_do(
    tmp_path: Path, changes: dict[str, Tensor | None], words: str
) -> None:
    study = study_with(tmp_path, content_of(**changes))
    with pytest.raises(WeightsError, match=rf"{FILE}: {words}"):
        build_model(study, tmp_path)


def test_a_missing_file_is_refused_with_where_it_belongs(tmp_path: Path) -> None:
    content = content_of()
    study = make_study(changes_for(content))
    with pytest.raises(
        WeightsError, match=rf"{tmp_path / FILE}: cannot be read .*whose SHA-256 is [0-9a-f]+"
    ):
        build_model(study, tmp_path)
    with pytest.raises(WeightsError, match=r"no folder is known.*the folder `weights` of site\.toml"):
        build_model(study)
    assert sum(one.numel() for one in outline(study).parameters()) > 0, "its shape is known without the file"


@pytest.mark.parametrize("changed", [lambda content: content[:-1] + b"x", lambda content: content[:-4]])
def test_another_file_of_that_name_is_refused_with_both_hashes(tmp_path: Path, changed) -> None:
    content = content_of()
    study = study_with(tmp_path, content)
    (tmp_path / FILE).write_bytes(changed(content))
    found = hashlib.sha256(changed(content)).hexdigest()
    with pytest.raises(WeightsError, match=rf"has SHA-256 {found}, and the study names"):
        build_model(study, tmp_path)


def test_a_file_that_is_no_safetensors_file_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "pickled"
    torch.save({"head.weight": torch.ones(1)}, path)
    study = study_with(tmp_path, path.read_bytes())
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        build_model(study, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (FILE, "../start.safetensors", "pattern"),
        (FILE, "start.pt", "pattern"),
        (PUBLIC, 'origin = ""', "at least 1 character"),
    ],
)
def test_a_study_names_a_plain_safetensors_file_and_says_where_it_is_from(
    old: str, new: str, words: str
) -> None:
    changes = {key: text.replace(old, new) for key, text in changes_for(content_of()).items()}
    with pytest.raises(ValueError, match=words):
        make_study(changes)


def test_frozen_weights_of_the_file_do_not_travel_and_stand_in_the_manifest_and_the_kept_model(
    tmp_path: Path,
) -> None:
    from safetensors.numpy import load_file

    from server.checkpoint import Progress
    from server.result import build_result
    from shared_models.manifest import flatten

    study = study_with(tmp_path, content_of(), 'trainable = "head"')
    model = build_model(study, tmp_path)
    assert Manifest.of(model).num_weights == 33
    assert Manifest.of(model).hash != Manifest.of(outline(study)).hash
    result = build_result(study, Progress(run_id="run", study_hash=study.hash), engine="local", refusals={})
    write_model(tmp_path / "model.safetensors", study, flatten(model), result)
    kept = load_file(tmp_path / "model.safetensors")
    assert bool((kept["convolutions.2.weight"] == np.float32(0.25)).all())


def test_the_server_brings_the_file_into_the_runs_folder_only_after_a_look_at_it(tmp_path: Path) -> None:
    study, run = study_with(tmp_path / "beside", content_of()), tmp_path / "run"
    bring_weights(study, tmp_path / "beside", run)
    assert (run / FILE).read_bytes() == content_of()
    (tmp_path / "beside" / FILE).unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        bring_weights(write_study_file(tmp_path / "study.toml", changes_for(content_of(x=torch.ones(1)))),
                      tmp_path / "beside", tmp_path / "other")  # fmt: skip
    assert not (tmp_path / "other").exists()


@pytest.mark.thorough
def test_a_scenario_begins_with_the_file_at_every_hospital_and_frozen_weights_end_as_they_were(
    tmp_path: Path,
) -> None:
    from safetensors.numpy import load_file

    from shared_models.configuration import ConfigurationError
    from simulations.runner import Options, run_scenario
    from simulations.scenario import read_scenario

    content = content_of({name: one.detach() for name, one in outline(make_study()).named_parameters()})
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / FILE).write_bytes(content)
    text = scenario_text(changes=changes_for(content, 'trainable = "head"'))
    text = text.replace("[model.weights]", "[study.model.weights]")
    path = tmp_path / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match="belong together"):
        read_scenario(str(path))
    path.write_text('weights = "given"\n' + text, encoding="utf-8")
    options = Options(engine="local", compare=False, out=tmp_path / "out", num_workers=1)
    result = run_scenario(read_scenario(str(path)), options, quiet())
    assert [entry.burned for entry in result.rounds] == [None] * 3
    kept, begun = load_file(tmp_path / "out" / "model.safetensors"), outline(make_study()).state_dict()
    for name, weight in begun.items():
        same = np.array_equal(kept[name], weight.numpy())
        assert same is not name.startswith("head."), name
