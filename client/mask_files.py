"""Which mask file goes with which image: by name, by what a DICOM SEG was drawn on, or by a column of the labels file.

==================  ==================================================================================
a mask              goes with
==================  ==================================================================================
PNG                 the plane image of the same name in the same folder, but for the ending
NIfTI               the series whose files lie in the folder of its name
PNG, NIfTI          also the image or series whose UID it is named after, in any folder
DICOM SEG           the image or series that it says it was drawn on
named in the file   the images of that row of the labels file; then nothing else is looked at
==================  ==================================================================================

Folders are those below the masks folder and below the images folder. Nothing is guessed: an image with two masks, and
one without any, are left out. A mask is known by its keyed content, so that a changed one is read again with its image.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from client.dicom_file import Unusable
from client.file_tree import FoundFile
from client.identifiers import PSEUDONYM_KINDS, normalised
from client.labels import LabelTable
from client.reading_pool import Reader, reading_pool
from client.reasons import MaskProblem, Reason
from client.scan_memory import Record, ScanMemory
from client.secret import SiteSecret
from client.site_file import LabelKey, Masks
from client.structures import MaskValues, MaskWanted
from shared_models.study import Image, Study

BY_NAME = (".png", ".nii.gz", ".nii")
"""Endings of masks that say nothing of their image themselves."""
_IMAGE_ENDINGS = (".dcm", ".dicom", ".ima")
_UIDS = ("SOPInstanceUID", "SeriesInstanceUID")
_FILES_A_READER = 32
NOTHING, SEVERAL, EMPTY = "", "several", "empty"
"""In the place of a mask's content: there is none, there are several, and it is stated that nothing is to be marked."""


@dataclass(frozen=True, slots=True)
class _MaskFile:
    """A file below the masks folder, and what its memory says."""

    file: FoundFile
    key: bytes
    record: Record | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFiles:
    """All masks of a site, by what they can be found by; and which of them were found.

    Attributes:
        folder: that they lie below.
        structures: the study's.
        volumes: whether an image is a series.
        by_path: content of each mask, by its path below the folder.
        by_content: the path of one mask of each content.
        by_stem: paths by name without ending.
        by_uid: paths by pseudonym of the UID that they are named after or were drawn on.
        named: where the labels file names masks, what it names for each key; else None.
        key: of the labels file.
        empty: what it says where nothing is to be marked.
        kept: keys of their records in the memory.
        no_masks: how many files of the masks folder are none.
        found: paths that went with some image.
    """

    folder: Path
    structures: MaskValues
    volumes: bool
    by_path: Mapping[str, str] = field(repr=False)
    by_content: Mapping[str, str] = field(repr=False)
    by_stem: Mapping[str, Sequence[str]] = field(repr=False)
    by_uid: Mapping[str, Sequence[str]] = field(repr=False)
    named: Mapping[str, Collection[str]] | None = field(repr=False)
    key: LabelKey
    empty: str
    kept: frozenset[bytes] = field(repr=False)
    no_masks: int
    found: set[str] = field(default_factory=set, repr=False)

    def of(self, name: str, pseudonyms: Mapping[str, str]) -> str:
        """Return the content of the mask of an image, `EMPTY`, `SEVERAL`, or `NOTHING`.

        Args:
            name: path of its file below the images folder; of a series that of any of its files.
            pseudonyms: of its identifiers, as of `client.scan_memory.Record`.
        """
        if not pseudonyms:
            return NOTHING
        if self.named is not None:
            stated = set(self.named.get(pseudonyms.get(self.key, ""), ()))
            if stated == {self.empty}:
                return EMPTY
            paths = {_plain(one) for one in stated}
        else:
            paths = set(self.by_stem.get(self._stem(name), ()))
            for keyword in _UIDS if self.volumes else _UIDS[:1]:
                if uid := pseudonyms.get(keyword):
                    paths |= set(self.by_uid.get(uid, ()))
        there = paths & self.by_path.keys()
        self.found.update(there)
        if len(paths) > 1:
            return SEVERAL
        return self.by_path[there.pop()] if there else NOTHING

    def of_series(self, files: Sequence[tuple[str, Mapping[str, str]]]) -> str:
        """The same of all files of a series, each with its name and pseudonyms."""
        found = {self.of(name, pseudonyms) for name, pseudonyms in files} - {NOTHING}
        return SEVERAL if len(found) > 1 else found.pop() if found else NOTHING

    def wanted(self, mask: str) -> MaskWanted:
        """What the process that decodes is asked for, by content or `EMPTY`."""
        if mask == EMPTY:
            return MaskWanted(path=None, structures=self.structures)
        return MaskWanted(path=self.folder / self.by_content[mask], structures=self.structures)

    def problems(self) -> dict[MaskProblem, int]:
        """What is wrong with mask files, once all images are known; without what there is none of."""
        counted = {
            MaskProblem.NO_IMAGE: len(self.by_path.keys() - self.found),
            MaskProblem.NO_MASK: self.no_masks,
        }
        return {problem: number for problem, number in counted.items() if number}

    def _stem(self, name: str) -> str:
        if self.volumes:
            return name.rpartition("/")[0]
        ending = next((one for one in _IMAGE_ENDINGS if name.lower().endswith(one)), "")
        return name[: len(name) - len(ending)]


def check_mask(mask: str) -> None:
    """Raise Unusable where an image has no mask, or several."""
    if mask in (NOTHING, SEVERAL):
        raise Unusable(Reason.NO_MASK if mask == NOTHING else Reason.SEVERAL_MASKS)


def find_masks(
    where: Masks,
    files: Sequence[FoundFile],
    labels: LabelTable,
    *,
    key: LabelKey,
    study: Study,
    apart: bool,
    secret: SiteSecret,
    memory: ScanMemory,
    recheck: bool,
    make_reader: Callable[[], Reader],
) -> MaskFiles:
    """Read what is new of the masks folder: the digest of each mask, and what a DICOM SEG was drawn on.

    Args:
        where: the site's.
        files: all below the masks folder.
        labels: by pseudonym.
        key: of the labels file.
        study: what masks mean, and whether an image is a series.
        apart: whether the folder holds masks only; else other files in it are images.
        secret: makes pseudonyms and keyed hashes.
        memory: what is known of the files; it is brought up to date.
        recheck: read every file again, whatever its size and time of change.
        make_reader: makes what reads.

    Raises:
        DecoderDoesNotStart: no file can be read.
    """
    seen = [_seen(file, memory, secret, recheck=recheck) for file in files if file.size is not None]
    unknown = sum(each.record is None for each in seen)
    readers = min(4, 1 + unknown // _FILES_A_READER)
    with reading_pool(make_reader, readers, ahead=64 * readers) as pool:

        def read(reader: Reader, each: _MaskFile) -> _MaskFile:
            return replace(each, record=_read(reader, where.folder, each.file, study.image, secret))

        started = (each if each.record is not None else pool.submit(read, each) for each in seen)
        known = list(pool.in_order(started))
    volumes = study.image.depth is not None
    by_path, kept = dict[str, str](), set[bytes]()
    by_stem, by_uid = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for each in known:
        name, record = each.file.name, each.record
        if record is None:
            continue
        memory.put(each.key, record)
        kept.add(each.key)
        ending = _ending(name)
        if not ending and not record.drawn_on:
            continue
        by_path[name] = record.content
        for uid in record.drawn_on:
            by_uid[uid].append(name)
        if ending:
            stem = name[: len(name) - len(ending)]
            by_stem[stem].append(name)
            by_uid[_named_after(stem, secret, volumes=volumes)].append(name)
    return MaskFiles(
        folder=where.folder,
        structures=study.task.mask_values,
        volumes=volumes,
        by_path=by_path,
        by_content={content: path for path, content in by_path.items()},
        by_stem=by_stem,
        by_uid=by_uid,
        named=labels.masks if where.column is not None else None,
        key=key,
        empty=where.empty,
        kept=frozenset(kept),
        no_masks=len(files) - len(by_path) if apart else 0,
    )


def _seen(file: FoundFile, memory: ScanMemory, secret: SiteSecret, *, recheck: bool) -> _MaskFile:
    key = bytes.fromhex(secret.pseudonym("mask path", file.name))
    known = None if recheck else memory.records.get(key)
    if known is not None and (known.size, known.mtime_ns) != (file.size, file.mtime_ns):
        known = None
    return _MaskFile(file, key, known)


def _read(reader: Reader, folder: Path, file: FoundFile, image: Image, secret: SiteSecret) -> Record | None:
    """What is remembered of a file; None where it cannot be read, which the next time may be otherwise."""
    path, by_name = folder / file.name, bool(_ending(file.name))
    nothing = Record(size=file.size or 0, mtime_ns=file.mtime_ns)
    try:
        drawn_on = () if by_name else reader.drawn_on(path)
        if not by_name and not drawn_on:
            return nothing
        digest = reader.digest(path, image)
    except Unusable as found:
        return nothing if found.reason is Reason.NOT_DICOM else None
    return Record(
        size=file.size or 0,
        mtime_ns=file.mtime_ns,
        content=secret.pseudonym("mask", digest.hex()),
        drawn_on=tuple(
            secret.pseudonym(PSEUDONYM_KINDS[keyword], normalised(uid))
            for uid in drawn_on
            for keyword in _UIDS
        ),
    )


def _named_after(stem: str, secret: SiteSecret, *, volumes: bool) -> str:
    name = normalised(PurePosixPath(stem).name)
    return secret.pseudonym(PSEUDONYM_KINDS[_UIDS[volumes]], name)


def _ending(name: str) -> str:
    return next((ending for ending in BY_NAME if name.lower().endswith(ending)), "")


def _plain(path: str) -> str:
    """As the file tree names it: below the folder, with ``/``."""
    return str(PurePosixPath(path.replace("\\", "/")))
