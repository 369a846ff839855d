"""A simulation's consortium on disk: each site has what a hospital has, and they know each other by a signed roster."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from client.approvals import Approvals
from client.membership import IDENTITY_KEY, join, make_keys, own_key
from client.site_file import read_site
from client.site_journal import make_journal
from shared_models.configuration import Frozen
from shared_models.identity_keys import identity_line, new_identity_key, read_identity_key
from shared_models.processes import private_folder, write_private
from shared_models.roster import Roster, write_roster
from shared_models.study import Study
from simulations.preparation.hospitals import Hospital


def write_study(path: Path, study: Study) -> None:
    """Write the study as TOML; reading it again gives the same hash."""
    path.write_text("\n".join(_table((), study)) + "\n", encoding="utf-8")


def _table(name: tuple[str, ...], model: Frozen) -> list[str]:
    plain, tables = [], []
    for key in type(model).model_fields:
        value = getattr(model, key)
        if isinstance(value, Frozen):
            tables += ["", f"[{'.'.join((*name, key))}]", *_table((*name, key), value)]
        elif value is not None:
            plain.append(f"{key} = {toml_value(value)}")
    return plain + tables


def toml_value(value: object) -> str:
    """Return *value* as TOML: booleans, numbers, text, paths, tables in one line, and lists of them."""
    if isinstance(value, Frozen):
        fields = ((key, getattr(value, key)) for key in type(value).model_fields)
        return "{ " + ", ".join(f"{key} = {toml_value(one)}" for key, one in fields if one is not None) + " }"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(entry) for entry in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def write_site(
    folder: Path,
    hospital: Hospital,
    study: Study,
    *,
    seed: int,
    server: Mapping[str, object] | None = None,
    weights: Path | None = None,
) -> Path:
    """Write the files of one virtual hospital and return the path of its ``site.toml``; `enrol` makes its keys.

    All sites of a simulation share one secret, made from the scenario's seed: a patient who occurs at two
    hospitals has the same role in both, so that the pooled baseline is not tested on its own training patients.
    Real sites each make their own.

    Args:
        folder: of the site; it must not exist.
        hospital: its images, labels and masks.
        study: written beside ``site.toml``.
        seed: of the scenario.
        server: the ``[server]`` table; None in the local engine.
        weights: the folder of initial weights; None where the study names none.
    """
    state = folder / "state"
    state.mkdir(parents=True, mode=0o700)
    _write_secret(state / "site.secret", seed)
    write_study(folder / "study.toml", study)
    private = study.privacy.mode != "none"
    labels: dict[str, object] = {"file": hospital.labels_file.resolve(), "key": hospital.label_key}
    if len(study.task.columns) == 1:
        labels["column"] = hospital.label_column
    tables: dict[str, Mapping[str, object]] = {
        "images": {"folder": hospital.images.resolve()},
        "labels": labels,
        "policy": {
            "min_cohort": study.aggregation.min_cohort,
            "min_threshold": study.aggregation.threshold,
            "min_patients": 1,
            "max_unusable_share": 1.0,
            "max_runs_per_study": 1,
            "allowed_tasks": [study.task.kind],
            "allowed_architectures": [study.model.architecture],
            "allow_no_privacy": not private,
            "allow_distributed_noise": study.privacy.mode == "distributed",
        },
        "consortium": {"root": "root.pub", "roster": "roster.toml", "identity_key": IDENTITY_KEY},
        "compute": {"device": "cpu", "num_threads": 1},
    }
    if hospital.num_masks:
        tables["masks"] = {"folder": hospital.masks.resolve()}
    if server is not None:
        tables["server"] = server
    if not private:
        tables["testing"] = {"sampling_seed": seed}
    lines = [f"name = {toml_value(hospital.name)}", 'state = "state"']
    if weights is not None:
        lines.append(f"weights = {toml_value(weights.resolve())}")
    for name, values in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {toml_value(value)}" for key, value in values.items())]
    path = folder / "site.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def enrol(server: Path, site_files: Sequence[Path], study: Study) -> Roster:
    """Make the consortium of a simulation: root key, the sites' keys and journals, and the roster that each site joins.

    Args:
        server: folder for ``root.key``, ``root.pub`` and ``roster.toml``; made where it is missing.
        site_files: each site's ``site.toml``; keys, ``root.pub`` and ``roster.toml`` are put beside it.
        study: which each site approves.

    Returns:
        The roster, as each site has it.
    """
    write_private(private_folder(server) / "root.key", new_identity_key()[0])
    root = read_identity_key(server / "root.key")
    (server / "root.pub").write_text(identity_line(root) + "\n", encoding="ascii")
    sites = tuple(make_keys(path.parent, read_site(path).name)[1].site for path in site_files)
    roster = Roster(version=1, site=sites)
    write_roster(server / "roster.toml", roster, root)
    for path in site_files:
        shutil.copyfile(server / "root.pub", path.parent / "root.pub")
        file = read_site(path)
        join(file, server / "roster.toml")
        Approvals(make_journal(file, own_key(file)), file.state).decide(study, "approved", by="simulation")
    return roster


def _write_secret(path: Path, seed: int) -> None:
    digest = hashlib.sha256(b"collegium-simulation-secret|" + np.int64(seed).tobytes()).digest()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(digest)
