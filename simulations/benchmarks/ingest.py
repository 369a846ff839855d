"""``ingest``: a hospital's folder of DICOM files becomes an index and tensors."""

import csv
import gc
import os
import resource
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from client.decoding import DecodingWorker
from client.file_reading import Header, OpenFile, Prepared, digest_of
from client.ingestion import ingest
from client.reading_pool import Reader
from client.secret import SiteSecret
from client.segmentation import drawn_on
from client.series import prepare_series
from client.site_file import Compute, Consortium, Images, Labels, Policy, SiteFile
from client.structures import MaskWanted
from shared_models.quality import Quality
from shared_models.study import Image, Study
from simulations.benchmarks.table import Benchmark, Row, rows_of
from simulations.preparation.hospital_folder import LABEL_KEY
from simulations.preparation.hospitals import prepare
from simulations.preparation.phantom_hospitals import LABEL_COLUMN, NEGATIVE, POSITIVE
from simulations.preparation.sources import PhantomSource
from simulations.scenario import read_scenario

BARE = "pydicom: dcmread, pixel_array"
MONAI = "MONAI: LoadImage, PydicomReader"
ALONE = "ingest, one process on one core"
NUM_SCANNERS = 6
SYNTAXES = (JPEG2000Lossless, RLELossless, JPEGLSLossless, ExplicitVRLittleEndian, ImplicitVRLittleEndian)
"""Of one file after the other; the first three are compressed."""

Samples = dict[str, list[float]]
Work = Callable[[], object]


class ReaderInThisProcess:
    """Reads files as `client.decoding.DecodingWorker` does, without a process of its own."""

    def __init__(self) -> None:
        self._file = OpenFile()

    def header(self, path: Path, image: Image) -> Header:
        """Read the header."""
        return self._file.header(path, image)

    def digest(self, path: Path, image: Image) -> bytes:
        """Return the digest of the bytes."""
        return digest_of(path)

    def drawn_on(self, path: Path) -> tuple[str, ...]:
        """Return what a mask was drawn on."""
        return drawn_on(path)

    def prepare(self, path: Path, image: Image, mask: MaskWanted | None = None) -> Prepared:
        """Decode and prepare."""
        return self._file.prepared(path, image, mask)

    def prepare_series(self, paths: Sequence[Path], image: Image, mask: MaskWanted | None = None) -> Prepared:
        """Decode and prepare a series."""
        return prepare_series(paths, image, mask)

    def interrupt(self) -> None:
        """Nothing can stop it."""

    def close(self) -> None:
        """Close its file."""
        self._file.close()


def measure(quick: bool) -> tuple[Row, ...]:
    """Files per second of `client.ingestion.ingest`: in parallel, in one process, and again; beside plain loops."""
    size, num_files, every, repetitions = (64, 40, 2, 1) if quick else (512, 10_000, 5, 2)
    source = PhantomSource(num_hospitals=NUM_SCANNERS, patients_per_hospital=(4,), image_size=size)
    with tempfile.TemporaryDirectory(prefix="collegium-bench-") as folder:
        site = one_hospital_of_all(source, Path(folder), num_files)
        files = sorted(site.images.folder.rglob("*.dcm"))
        compressed = [path for path in files if int(path.stem) % len(SYNTAXES) < 3][::every]
        few, packed = (_site_of(site, each, Path(folder) / name) for name, each in
                       (("few", files[::every]), ("packed", compressed)))  # fmt: skip
        runs, processor = clock_and_processor(
            {
                "first": lambda: _first(site, len(files)),
                "again": lambda: _ingest(site, len(files)),
                "alone": lambda: _first(site, len(files), one_core=True),
            },
            1,
        )
        loops: dict[str, Work] = {
            BARE: lambda: _bare(files[::every]),
            ALONE: lambda: _first(few, len(files[::every]), one_core=True),
        }
        if find_spec("monai"):
            _monai(files[:1])  # its import takes seconds
            loops[MONAI] = lambda: _monai(files[::every])
        all_files, _ = clock_and_processor(loops, repetitions)
        only_compressed, _ = clock_and_processor(
            {BARE: lambda: _bare(compressed), ALONE: lambda: _first(packed, len(compressed), one_core=True)},
            repetitions,
        )
    cores = len(os.sched_getaffinity(0))
    limit = f"{cores} cores × the rate on one"
    rates = {
        limit: [cores * len(files) / seconds for seconds in runs["alone"]],
        f"ingest, {cores} readers": [len(files) / seconds for seconds in runs["first"]],
        "ingest again": [len(files) / seconds for seconds in runs["again"]],
    }
    costs = {
        ALONE: [len(files) / seconds for seconds in processor["alone"]],
        f"ingest, {cores} readers": [len(files) / seconds for seconds in processor["first"]],
    }
    about = f"of {size}×{size}, {NUM_SCANNERS} scanners"
    return (
        *rows_of(f"{len(files)} files {about}, {len(SYNTAXES)} syntaxes", "files/s", rates, baseline=limit),
        *rows_of(f"{len(files)} files, by processor time", "files/s", costs, baseline=ALONE),
        *_rows(f"{len(files[::every])} of these, one core", len(files[::every]), all_files),
        *_rows(f"{len(compressed)} of the compressed ones, one core", len(compressed), only_compressed),
    )


def one_hospital_of_all(source: PhantomSource, folder: Path, num_files: int) -> SiteFile:
    """Prepare the hospitals of *source* and make one site of *num_files* files with their pictures.

    Each picture is written in several transfer syntaxes and for several patients, so that no two files are the same.
    """
    hospitals = prepare(source, folder / "prepared", seed=0)
    found = sorted(path for hospital in hospitals for path in hospital.images.rglob("*.dcm"))
    images, encoded = folder / "images", dict[tuple[Path, UID], FileDataset]()
    patients = []
    for number in range(num_files):
        path, syntax = found[number // len(SYNTAXES) % len(found)], SYNTAXES[number % len(SYNTAXES)]
        if (path, syntax) not in encoded:
            encoded[path, syntax] = _encoded(path, syntax)
        made = encoded[path, syntax]
        made.PatientID = f"PHANTOM-{number % (num_files // 4):06d}"  # nobody has a picture twice
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid(
            entropy_srcs=[str(number)]
        )
        target = images / f"{number % 100:02d}" / f"{number:06d}.dcm"
        target.parent.mkdir(parents=True, exist_ok=True)
        made.save_as(target)
        patients.append(made.PatientID)
    shutil.rmtree(folder / "prepared")
    return _site(folder, images, patients)


def _encoded(path: Path, syntax: UID) -> FileDataset:
    """The file in this transfer syntax; as it is where a picture cannot be put into it."""
    made = dcmread(path)
    if made.file_meta.TransferSyntaxUID.is_compressed:
        made.decompress()
    if syntax.is_compressed:
        made.compress(syntax, generate_instance_uid=False)
    else:
        made.file_meta.TransferSyntaxUID = syntax
    return made


def _site(folder: Path, images: Path, patients: Sequence[str]) -> SiteFile:
    labels = folder / "labels.csv"
    with labels.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([LABEL_KEY, LABEL_COLUMN])
        for number, patient in enumerate(dict.fromkeys(patients)):
            writer.writerow((patient, POSITIVE if number % 2 else NEGATIVE))
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


def _site_of(site: SiteFile, files: Sequence[Path], folder: Path) -> SiteFile:
    """The same with some of its files only."""
    for path in files:
        target = folder / "images" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(path)
    return site.model_copy(update={"state": folder / "state", "images": Images(folder=folder / "images")})


def _study() -> Study:
    """The demo's study with images of 128×128, of which several patients have the same ones in other syntaxes."""
    study = read_scenario("demo").study
    image = study.image.model_copy(update={"rows": 128, "columns": 128})
    return study.model_copy(update={"image": image, "quality": Quality(shared_pixels="use")})


def _first(site: SiteFile, num_files: int, *, one_core: bool = False) -> None:
    """Read everything; in this process and on one core, or in as many as there are cores."""
    shutil.rmtree(site.state, ignore_errors=True)
    if not one_core:
        _ingest(site, num_files)
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        _ingest(site, num_files, ReaderInThisProcess)
    finally:
        os.sched_setaffinity(0, cores)


def _ingest(site: SiteFile, num_files: int, make_reader: Callable[[], Reader] = DecodingWorker) -> None:
    readers = 1 if make_reader is ReaderInThisProcess else 0
    site = site.model_copy(update={"compute": Compute(num_readers=readers)})
    found = ingest(site, _study(), SiteSecret(key=bytes(32)), make_reader=make_reader)
    if (used := len(found.index.images)) != num_files:
        raise RuntimeError(f"{used} of {num_files} files are used; the comparison would not be fair")


def _bare(files: Sequence[Path]) -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        for path in files:
            dcmread(path).pixel_array  # noqa: B018 - reading the attribute decodes
    finally:
        os.sched_setaffinity(0, cores)


def _monai(files: Sequence[Path]) -> None:
    warnings.filterwarnings("ignore", module="monai")
    transforms = import_module("monai.transforms")
    load = transforms.LoadImage(reader="PydicomReader", image_only=True)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        for path in files:
            load(path)
    finally:
        os.sched_setaffinity(0, cores)


def clock_and_processor(variants: Mapping[str, Work], repetitions: int) -> tuple[Samples, Samples]:
    """Seconds of each variant by the clock, and of processor time of all processes, measured in turn.

    The first call of each counts, since a first run is what is asked.
    """
    clock: Samples = {name: [] for name in variants}
    processor: Samples = {name: [] for name in variants}
    for _ in range(repetitions):
        for name, work in variants.items():
            gc.collect()
            begun, used = time.perf_counter(), _processor_seconds()
            work()
            clock[name].append(time.perf_counter() - begun)
            processor[name].append(_processor_seconds() - used)
    return clock, processor


def _processor_seconds() -> float:
    """Of this process and of all that it started and that have ended."""
    kinds = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in kinds)


def _rows(case: str, num_files: int, seconds: Mapping[str, Sequence[float]]) -> tuple[Row, ...]:
    rates = {name: [num_files / value for value in values] for name, values in seconds.items()}
    return rows_of(case, "files/s", rates, baseline=BARE)


BENCHMARK = Benchmark(
    name="ingest",
    title="from a folder of DICOM files to an index and prepared images of 128×128",
    method="client.ingestion.ingest (header, checks, digest, decoding, percentiles, resizing, cache and index written) "
    "in as many processes as there are cores, and without processes of its own pinned to one core; again: nothing "
    "changed; plain loops decode and prepare nothing, on one core too; MONAI where it is installed; files in the page "
    "cache; processor time, of all processes, says what several of them cost where a machine has other work too; "
    "higher is better",
    measure=measure,
)
