"""The whole chain: a real Orthanc holds four hospitals' studies; each fetches its own, and they train together."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from orthanc import Orthanc, needs_orthanc
from pacs_site import ROOT, contents, dicomweb, dimse
from pydicom import dcmread
from safetensors.numpy import load_file

from client.membership import read_joined
from client.site_file import read_site
from server.receipts import Receipts
from server.result import Result
from server.run import checkpoint_path, federation_of, run_study
from server.run_state import RunContext
from shared_models.study import Study
from simulations.local_exchange import LocalExchange
from simulations.preparation.hospitals import Hospital, prepare
from simulations.preparation.sources import HamSource, PhantomSource, Source
from simulations.scenario import read_scenario
from simulations.work_folder import enrol, write_site

pytestmark = [needs_orthanc, pytest.mark.thorough]
STUDIES_EACH = 200
ROUNDS = 2


@dataclass(frozen=True)
class Prepared:
    """Four hospitals, their study, and the PACS that holds all their studies."""

    hospitals: tuple[Hospital, ...]
    study: Study
    orthanc: Orthanc


def short(name: str) -> Study:
    """A built-in study with few rounds and without noise, so that two runs can be compared."""
    values = read_scenario(name).study.model_dump(mode="json", exclude_none=True)
    values["training"] |= {"num_rounds": ROUNDS, "local_steps": 2}
    values["privacy"] = {"mode": "none"}
    values["evaluation"] = {"num_bins": 20, "unnoised": True}
    return Study.model_validate_json(json.dumps(values))


@pytest.fixture(scope="module", params=["ham10000", "phantom"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    source: Source
    if request.param == "ham10000":
        if "COLLEGIUM_DATA" not in os.environ:
            pytest.skip("COLLEGIUM_DATA is not set: no HAM10000")
        source, study = HamSource(max_patients=STUDIES_EACH), short("ham10000")
    else:
        source = PhantomSource(num_hospitals=4, patients_per_hospital=STUDIES_EACH, image_size=64)
        study = short("demo")
    folder = tmp_path_factory.mktemp(request.param)
    hospitals = prepare(source, folder / "hospitals", 5)
    assert len(hospitals) == 4
    with Orthanc(folder / "orthanc") as orthanc:
        for hospital in hospitals:
            orthanc.upload(sorted(hospital.images.rglob("*.dcm")))
        yield Prepared(hospitals=hospitals, study=study, orthanc=orthanc)


def fetched(prepared: Prepared, folder: Path, pacs: str) -> list[Path]:
    """Four sites whose images folders were filled by ``collegium-client fetch``; paths of their ``site.toml``."""
    paths = []
    for hospital in prepared.hospitals:
        data = folder / "data" / hospital.name
        (data / "images").mkdir(parents=True)
        shutil.copyfile(hospital.labels_file, data / "labels.csv")
        empty = hospital.model_copy(update={"folder": data})
        path = write_site(folder / "sites" / hospital.name, empty, prepared.study, seed=5)
        path.write_text(f"{path.read_text()}\n[pacs]\n{pacs}", encoding="utf-8")
        paths.append(path)
    enrol(folder / "server", paths, prepared.study)
    for path, hospital in zip(paths, prepared.hospitals, strict=True):
        files = sorted(hospital.images.rglob("*.dcm"))
        studies = {str(dcmread(file, stop_before_pixels=True).StudyInstanceUID): None for file in files}
        assert len(studies) >= STUDIES_EACH
        wanted = path.parent / "studies.txt"
        wanted.write_text("".join(f"{uid}\n" for uid in studies))
        told = client("fetch", "--config", path, "--studies", wanted, "--json")
        assert told["outcomes"] == {"complete": len(studies)}
        assert contents(sorted((folder / "data" / hospital.name).rglob("*.dcm"))) == contents(files)
        index = client("index", "--config", path, "--json", "--strict")
        assert index["refused"] is None
        copies = index["left_out"].pop("duplicate-pixels", 0)  # HAM10000 has a few, of the same lesion
        assert (index["left_out"], index["num_images"]) == ({}, len(files) - copies)
        assert copies <= len(files) // 100
    return paths


def client(*words: object) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "client.command", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def trained(prepared: Prepared, folder: Path, paths: list[Path]) -> tuple[Result, np.ndarray]:
    """Train together, by the simulation's local engine; the result and the model's weights."""
    server, run_id = folder / "server", f"{prepared.study.name}-1"
    roster = read_joined(read_site(paths[0]))
    checkpoint = checkpoint_path(server / "state", run_id)
    with LocalExchange([read_site(path) for path in paths], num_workers=2) as exchange:
        context = RunContext(
            study=prepared.study,
            run_id=run_id,
            exchange=exchange,
            federation=federation_of(prepared.study, run_id, roster),
            checkpoint=checkpoint,
            receipts=Receipts(server / "state" / "receipts"),
            tell=lambda progress: None,
        )
        run_study(context, engine="local")
    result = Result.model_validate_json((checkpoint.parent / "result.json").read_bytes(), strict=False)
    arrays = load_file(checkpoint.parent / "model.safetensors")
    return result, np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def test_from_a_pacs_to_one_model_by_dimse_and_by_dicomweb(prepared: Prepared, tmp_path: Path) -> None:
    outcomes = []
    for way, pacs in (
        ("dimse", dimse(prepared.orthanc.dicom_port)),
        ("dicomweb", dicomweb(prepared.orthanc.url)),
    ):
        folder = tmp_path / way
        paths = fetched(prepared, folder, pacs)
        outcomes.append(trained(prepared, folder, paths))
    (first, weights), (second, other) = outcomes
    assert len(first.rounds) == ROUNDS
    assert first.test is not None
    assert first.test == second.test
    assert all(len(entry.survivors) == 4 for entry in first.rounds)
    np.testing.assert_array_equal(weights, other)
