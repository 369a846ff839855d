"""From a hospital's folder to tensors in one pass: index, decode, prepare, and put together by patient."""

import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from client.cache_folder import Tell, opened_cache, preparation_hash
from client.decoding import DecoderDoesNotStart, DecodingWorker
from client.decoding_limits import Limits
from client.dicom_index import Index, IndexBuilder
from client.file_tree import FoundFile, files_below
from client.identifiers import PSEUDONYM_KINDS
from client.index_report import write_index
from client.labels import LabelsError, read_labels
from client.patients import PatientSet, gather_patients
from client.reading_pool import Reader
from client.roles import Role
from client.scan import CHECKPOINT_SECONDS, Progress, Scan
from client.scan_memory import ScanMemory
from client.secret import SiteSecret
from client.site_file import SiteFile
from client.volume_scan import VolumeScan
from shared_models.study import Study

log = logging.getLogger("collegium.site")


class DataRefused(Exception):
    """The site does not train on its data as they are.

    The message is for the site's own operator. It holds counts of patients and files, and must not leave the site.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """A hospital's data for one study."""

    index: Index
    patients: dict[Role, PatientSet]


def ingest(
    site: SiteFile,
    study: Study,
    secret: SiteSecret,
    *,
    withdrawn: Collection[str] = (),
    progress: Progress = lambda done, total: None,
    tell: Tell = log.warning,
    recheck: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    make_reader: Callable[[], Reader] | None = None,
) -> Ingested:
    """Read the hospital's images and labels and write the index to the state folder.

    Files are read in processes of their own, several at a time. Files that did not change since they were read for
    the same preparation are not read again. The index tells of all files, those that cannot be decoded included.

    Guarantees: the same files, labels, study and secret give the same index and the same images, whatever was
    remembered before and wherever an earlier call was ended.

    Args:
        site: where images, labels and state are.
        study: what is wanted of them.
        secret: makes pseudonyms and roles.
        withdrawn: pseudonyms of patients who are left out, and whose prepared images are erased.
        progress: called with files done and files in all.
        tell: gets sentences for the site's operator: what was damaged, what there is no room for.
        recheck: read every file, even where its size and time of change are as they were.
        checkpoint_seconds: what is lost at most where the process is ended.
        make_reader: makes what reads files; if None, a process of its own with the limits of the study's images.

    Returns:
        The index, and one `PatientSet` for each role, possibly of no patients.

    Raises:
        LabelsError: the labels file as a whole cannot be used.
        DataRefused: the images folder cannot be listed, or the process that decodes does not start.
    """
    key, image = site.labels.key, study.image
    if image.depth is not None and key == "SOPInstanceUID":
        raise LabelsError(
            f"{site.labels.file}: labels.key is SOPInstanceUID, which names single slices, and the study's images are "
            "whole series (image.depth); key the labels by SeriesInstanceUID, StudyInstanceUID, AccessionNumber or "
            "PatientID"
        )
    labels = read_labels(site.labels, study)
    builder = IndexBuilder(
        labels=labels.keyed(lambda value: secret.pseudonym(PSEUDONYM_KINDS[key], value)),
        study=study,
        key=key,
        withdrawn=withdrawn,
        quality=site.quality,
    )
    files = _files(site.images.folder, exclude=site.labels.file)
    with opened_cache(
        site.state,
        preparation_hash(image, secret),
        image.shape,
        limit=int(site.images.cache_gib * 2**30),
        withdrawn=withdrawn,
        tell=tell,
    ) as images:
        memory = ScanMemory(images.folder, tell)
        try:
            scan = (Scan if image.depth is None else VolumeScan)(
                site.images.folder,
                builder,
                secret,
                memory,
                images,
                num_readers=site.compute.num_readers or len(os.sched_getaffinity(0)),
                recheck=recheck,
                checkpoint_seconds=checkpoint_seconds,
                make_reader=make_reader or partial(DecodingWorker, Limits.of(image)),
            )
            scan.read(files, progress)
        except DecoderDoesNotStart as error:
            raise DataRefused(str(error)) from error
        finally:
            memory.close()
        builder.settle_dicomdirs(site.images.folder, [file.name for file in files])
        index = builder.finished()
        write_index(index, site.state, study=study)
        return Ingested(index=index, patients=gather_patients(index, scan.stored))


def _files(folder: Path, *, exclude: Path) -> list[FoundFile]:
    """All files below the images folder but the labels file. Raises DataRefused."""
    try:
        status = exclude.stat()
        files = files_below(folder)
    except OSError as error:
        raise DataRefused(
            f"{folder}: cannot be listed ({error.strerror}); check images.folder in site.toml"
        ) from error
    return [file for file in files if file.identity != (status.st_dev, status.st_ino)]
