"""Opening a source: from what a scenario says to the cases of each hospital."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simulations.preparation.cases import Caseload
from simulations.preparation.ham10000 import ham10000_caseloads, locate_ham10000
from simulations.preparation.medmnist import locate_medmnist, medmnist_caseloads
from simulations.preparation.nodule_hospitals import nodule_caseloads
from simulations.preparation.phantom_hospitals import phantom_caseloads
from simulations.preparation.sources import (
    HamSource,
    MedMnistSource,
    NodulePhantomSource,
    PhantomSource,
    Source,
)


@contextmanager
def open_source(source: Source, seed: int) -> Iterator[tuple[Caseload, ...]]:
    """The hospitals of *source*, while its files are open.

    Raises:
        SourceError: the source's files are missing or wrong.
        PartitionError: the patients cannot be spread as asked.
    """
    if isinstance(source, PhantomSource):
        yield phantom_caseloads(source, seed)
    elif isinstance(source, NodulePhantomSource):
        yield nodule_caseloads(source, seed)
    elif isinstance(source, MedMnistSource):
        yield medmnist_caseloads(source, locate_medmnist(source), seed)
    else:
        with ham10000_caseloads(source, locate_ham10000(source)) as caseloads:
            yield caseloads


def fingerprint(source: Source) -> str:
    """SHA-256, hexadecimal, over the contents of the source's files; empty where it has none."""
    files = _files(source)
    combined = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            combined.update(hashlib.file_digest(file, "sha256").digest())
    return combined.hexdigest() if files else ""


def _files(source: Source) -> tuple[Path, ...]:
    if isinstance(source, HamSource):
        return locate_ham10000(source).all
    return (locate_medmnist(source),) if isinstance(source, MedMnistSource) else ()
