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
from client.labels import LabelsError, LabelTable, read_labels
from client.mask_files import MaskFiles, find_masks
from client.patients import PatientSet, gather_patients
from client.reading_pool import Reader
from client.roles import Role
from client.scan import CHECKPOINT_SECONDS, Progress, Scan
from client.scan_memory import ScanMemory
from client.secret import SiteSecret
from client.site_file import Masks, SiteFile
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
    structures = study.task.mask_values
    where = _where_masks_are(site, study) if structures else None
    labels = read_labels(site.labels, study, mask_column=None if where is None else where.column).keyed(
        lambda value: secret.pseudonym(PSEUDONYM_KINDS[key], value)
    )
    make_reader = make_reader or partial(DecodingWorker, Limits.of(image))
    files = _files(site.images.folder, exclude=site.labels.file, named="images.folder")
    with opened_cache(
        site.state,
        preparation_hash(image, secret, structures),
        (image.channels + bool(structures), *image.shape[1:]),
        limit=int(site.images.cache_gib * 2**30),
        withdrawn=withdrawn,
        tell=tell,
    ) as images:
        memory = ScanMemory(images.folder, tell)
        try:
            masks = None
            if where is not None:
                masks, files = _masks(
                    where,
                    files,
                    site=site,
                    study=study,
                    labels=labels,
                    secret=secret,
                    memory=memory,
                    recheck=recheck,
                    make_reader=make_reader,
                )
            builder = IndexBuilder(
                labels=labels,
                study=study,
                key=key,
                withdrawn=withdrawn,
                quality=site.quality,
                masks=masks,
            )
            scan = (Scan if image.depth is None else VolumeScan)(
                site.images.folder,
                builder,
                secret,
                memory,
                images,
                num_readers=site.compute.num_readers or len(os.sched_getaffinity(0)),
                recheck=recheck,
                checkpoint_seconds=checkpoint_seconds,
                make_reader=make_reader,
                masks=masks,
            )
            scan.read(files, progress)
        except DecoderDoesNotStart as error:
            raise DataRefused(str(error)) from error
        finally:
            memory.close()
        builder.settle_dicomdirs(site.images.folder, [file.name for file in files])
        index = builder.finished()
        write_index(index, site.state, study=study)
        return Ingested(index=index, patients=gather_patients(index, scan.stored, study.evaluation))


def _where_masks_are(site: SiteFile, study: Study) -> Masks:
    """Raises DataRefused or LabelsError where masks cannot be told from site.toml."""
    if site.masks is None:
        raise DataRefused(
            "the study learns from masks, and site.toml does not say where this hospital's are; add [masks] with folder"
        )
    images, masks = site.images.folder.resolve(), site.masks.folder.resolve()
    if images != masks and images.is_relative_to(masks):
        raise DataRefused(
            f"{site.masks.folder}: masks.folder in site.toml holds the images folder; name the same folder for both, "
            "or one below or beside it"
        )
    key = "SOPInstanceUID" if study.image.depth is None else "SeriesInstanceUID"
    if site.masks.column is not None and site.labels.key != key:
        raise LabelsError(
            f"{site.labels.file}: masks.column names a mask for each row, and a row stands for one image of this study "
            f"only where labels.key is {key}; key the labels by {key}, or leave masks.column out"
        )
    return site.masks


def _masks(
    where: Masks,
    files: list[FoundFile],
    *,
    site: SiteFile,
    study: Study,
    labels: LabelTable,
    secret: SiteSecret,
    memory: ScanMemory,
    recheck: bool,
    make_reader: Callable[[], Reader],
) -> tuple[MaskFiles, list[FoundFile]]:
    """The masks, and the files of the images folder that are none. Raises DataRefused."""
    apart = where.folder.resolve() != site.images.folder.resolve()
    below = _files(where.folder, exclude=site.labels.file, named="masks.folder") if apart else files
    masks = find_masks(
        where,
        below,
        labels,
        key=site.labels.key,
        study=study,
        apart=apart,
        secret=secret,
        memory=memory,
        recheck=recheck,
        make_reader=make_reader,
    )
    taken = {file.identity for file in below if apart or file.name in masks.by_path}
    return masks, [file for file in files if file.identity not in taken]


def _files(folder: Path, *, exclude: Path, named: str) -> list[FoundFile]:
    """All files below a folder but the labels file. Raises DataRefused."""
    try:
        status = exclude.stat()
        files = files_below(folder)
    except OSError as error:
        raise DataRefused(
            f"{folder}: cannot be listed ({error.strerror}); check {named} in site.toml"
        ) from error
    return [file for file in files if file.identity != (status.st_dev, status.st_ino)]
