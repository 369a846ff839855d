"""``ingest``: a hospital's folder of DICOM files becomes an index and tensors."""

import csv
import tempfile
from functools import partial
from pathlib import Path

from pydicom import dcmread

from client.ingestion import ingest
from client.secret import SiteSecret
from client.site_file import Consortium, Images, Labels, Policy, SiteFile
from shared_models.study import Study
from simulations.benchmarks.table import Benchmark, Row, rows_of
from simulations.benchmarks.timing import converted, interleaved
from simulations.preparation.hospital_folder import LABEL_KEY
from simulations.preparation.hospitals import prepare
from simulations.preparation.phantom_hospitals import LABEL_COLUMN
from simulations.preparation.sources import PhantomSource
from simulations.scenario import read_scenario

BASELINE = "dcmread and pixel_array"
NUM_SCANNERS = 6


def measure(quick: bool) -> tuple[Row, ...]:
    """Files per second of `client.ingestion.ingest` against bare pydicom."""
    patients, size, repetitions = (4, 64, 2) if quick else (80, 256, 7)
    source = PhantomSource(num_hospitals=NUM_SCANNERS, patients_per_hospital=(patients,), image_size=size)
    with tempfile.TemporaryDirectory(prefix="collegium-bench-") as folder:
        site = one_hospital_of_all(source, Path(folder))
        files = sorted(site.images.folder.glob("**/*.dcm"))
        study, secret = _study(), SiteSecret(key=bytes(32))
        if (used := len(ingest(site, study, secret).index.images)) != len(files):
            raise RuntimeError(f"{used} of {len(files)} files are used; the comparison would not be fair")
        seconds = interleaved(
            {BASELINE: partial(_decode, files), "ingest": partial(ingest, site, study, secret)},
            repetitions=repetitions,
        )
    case = f"{len(files)} files of about {size}×{size}, {NUM_SCANNERS} scanners"
    return rows_of(case, "files/s", converted(seconds, lambda value: len(files) / value), baseline=BASELINE)


def one_hospital_of_all(source: PhantomSource, folder: Path) -> SiteFile:
    """Prepare the hospitals of *source* and put their files together: one site with all kinds of files."""
    hospitals = prepare(source, folder / "prepared", seed=0)
    images, labels = folder / "images", folder / "labels.csv"
    images.mkdir()
    with labels.open("w", encoding="utf-8", newline="") as together:
        writer = csv.DictWriter(together, [LABEL_KEY, LABEL_COLUMN])
        writer.writeheader()
        for hospital in hospitals:
            hospital.images.rename(images / hospital.name)
            with hospital.labels_file.open(encoding="utf-8", newline="") as own:
                writer.writerows(csv.DictReader(own))
    return SiteFile(
        name="benchmark",
        state=folder / "state",
        images=Images(folder=images),
        labels=Labels(file=labels, key="PatientID", column=LABEL_COLUMN),
        policy=Policy(
            min_cohort=2,
            min_threshold=2,
            min_patients=1,
            max_unusable_share=1.0,
            max_runs_per_study=1,
            allowed_tasks=("binary-classification",),
            allowed_architectures=("small-cnn",),
        ),
        consortium=Consortium(
            root=folder / "root.pub", roster=folder / "roster.toml", identity_key=folder / "identity.key"
        ),
    )


def _study() -> Study:
    """The demo's study with images of 64×64."""
    study = read_scenario("demo").study
    return study.model_copy(update={"image": study.image.model_copy(update={"rows": 64, "columns": 64})})


def _decode(files: list[Path]) -> None:
    for path in files:
        dcmread(path).pixel_array  # noqa: B018 - reading the attribute decodes


BENCHMARK = Benchmark(
    name="ingest",
    title="from a folder of DICOM files to an index and tensors of 64×64",
    method="client.ingestion.ingest (labels, checks, decoding, percentiles, resizing, index written), against bare "
    "dcmread(path).pixel_array of the same files; files in the page cache; higher is better",
    measure=measure,
)
