"""``model.safetensors``: the trained weights and the card that says what they are."""

import json
from pathlib import Path

from safetensors.numpy import save

from server.checkpoint import write_atomically
from server.result import Result
from shared_models.architectures import build_model
from shared_models.manifest import FloatVector, Manifest, unflatten
from shared_models.study import Study, canonical_json
from shared_models.tasks.registry import task_of

INTENDED_USE = "Research on federated learning. Not a medical device; not for decisions on patients."


def write_model(path: Path, study: Study, weights: FloatVector, result: Result) -> None:
    """Write weights by name, float32, with the card as metadata, whole or not at all.

    Weights that are not trained are in it too, as the study's seed or file made them: who uses the model needs nothing
    else. A file of initial weights lies in the same folder.
    """
    model, task = build_model(study, path.parent), task_of(study)
    manifest = Manifest.of(model)
    card = {
        "format": "collegium-model-1",
        "intended_use": INTENDED_USE,
        "study": canonical_json(study).decode("ascii"),
        "study_hash": study.hash,
        "manifest_hash": manifest.hash,
        "run_id": result.run_id,
        "rounds": str(len(result.rounds)),
        "kept_round": str(result.kept_round or len(result.rounds)),
        "sites": str(len(result.sites)),
        "privacy": result.privacy.model_dump_json(),
        "outputs": json.dumps(task.output_names),
        "activation": task.activation,
        "test": json.dumps(result.test),
        "versions": json.dumps(result.versions),
    }
    unflatten(weights, model)
    arrays = {name: weight.detach().numpy().copy() for name, weight in model.named_parameters()}
    write_atomically(path, save(arrays, metadata=card))
