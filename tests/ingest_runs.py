"""Runs of `client.ingestion.ingest` that are watched, ended or compared."""

import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

from dicom_files import SECRET, Hospital, dataset, gradient, make_study, write_truncated

from client.cache_folder import CACHE_NAME, preparation_hash
from client.index_report import INDEX_NAME
from client.ingestion import Ingested, ingest
from client.scan_memory import SCAN_NAME
from shared_models.study import Study
from simulations.benchmarks.ingest import ReaderInThisProcess

STUDY = make_study()
EVENTS = ("open", "pwrite", "fsync", "ftruncate", "replace", "unlink")


class CountingReader(ReaderInThisProcess):
    """Reads in this process and says what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.headers: list[str] = []
        self.pixels: list[str] = []
        self.masks: list[str] = []

    def header(self, path, image):
        self.headers.append(path.name)
        return super().header(path, image)

    def drawn_on(self, path):
        self.masks.append(path.name)
        return super().drawn_on(path)

    def prepare(self, path, image, mask=None):
        self.pixels.append(path.name)
        return super().prepare(path, image, mask)

    def prepare_series(self, paths, image, mask=None):
        self.pixels.extend(path.name for path in paths)
        return super().prepare_series(paths, image, mask)


def run(hospital: Hospital, study: Study = STUDY, **options) -> tuple[Ingested, CountingReader, list[str]]:
    """Ingest in this process; return what was found, what was read, and what was told."""
    reader, told = CountingReader(), list[str]()
    cache_gib = options.pop("cache_gib", None)
    site = hospital.site()
    site = site.model_copy(update={"compute": site.compute.model_copy(update={"num_readers": 1})})
    if cache_gib is not None:
        site = site.model_copy(update={"images": site.images.model_copy(update={"cache_gib": cache_gib})})
    found = ingest(site, study, SECRET, make_reader=lambda: reader, tell=told.append, **options)
    return found, reader, told


def images_of(found: Ingested) -> dict[str, bytes]:
    """The bytes of all images of each patient."""
    return {
        name: part.images[list(part.images_of(number))].numpy().tobytes()
        for part in found.patients.values()
        for number, name in enumerate(part.pseudonyms)
    }


def mixed_hospital(root: Path, *, num_patients: int = 6) -> Hospital:
    """Good files, duplicates by number, a copy, an undecodable file, one without label and one that is no DICOM."""
    hospital = Hospital(root)
    rows = []
    for number in range(num_patients):
        patient = f"PAT-{number:04d}"
        for image in range(1 + number % 2):
            pixels = gradient(high=100 + 10 * number + image)
            hospital.add(
                f"{number % 3}/{number:04d}-{image}.dcm", dataset(pixels, patient=patient, image=str(image))
            )
        rows.append((patient, "yes" if number % 2 else "no"))
    hospital.add("0/again.dcm", dataset(gradient(high=7), patient="PAT-0001"))
    hospital.add("z/copy.dcm", dataset(gradient(high=110), patient="PAT-0001", image="0"))
    write_truncated(hospital.images / "1" / "cut.dcm", dataset(gradient(), patient="PAT-0002", image="9"))
    hospital.add("2/unlabelled.dcm", dataset(gradient(), patient="PAT-9999"))
    (hospital.images / "notes.txt").write_text("nothing")
    hospital.label(rows)
    return hospital


def folder_of(hospital: Hospital, study: Study = STUDY) -> Path:
    """The cache of the study's preparation."""
    return hospital.site().state / CACHE_NAME / preparation_hash(study.image, SECRET)


def kept(hospital: Hospital) -> dict[str, object]:
    """Everything that a run leaves: bytes of all files, and the rows of the memory."""
    state = hospital.site().state
    found: dict[str, object] = {INDEX_NAME: (state / INDEX_NAME).read_bytes()}
    for path in sorted((state / CACHE_NAME).rglob("*")):
        if path.name == SCAN_NAME:
            with sqlite3.connect(path) as connection:
                found[path.name] = connection.execute("SELECT * FROM files ORDER BY path").fetchall()
            connection.close()
        elif path.is_file():
            found[str(path.relative_to(state))] = path.read_bytes()
    return found


def killed_at(event: int, work: Callable[[], object]) -> bool:
    """Do *work* in a child process that is killed when it first changes a file for the *event*-th time.

    A write is killed when half of it is done. Returns whether it was killed; else it was done before.
    """
    child = os.fork()
    if child == 0:
        try:
            _die_at(event)
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _die_at(event: int) -> None:
    left = event

    def dying(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                if name == "pwrite":
                    descriptor, data, offset = arguments
                    original(descriptor, data[: len(data) // 2], offset)  # type: ignore[index,arg-type]
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    for name in EVENTS:
        setattr(os, name, dying(name, getattr(os, name)))
