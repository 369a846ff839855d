"""The index of a hospital's images folder: each file gives one usable image or one reason why not."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client.demographics import Demographics
from client.dicom_file import Unusable
from client.dicomdir import is_dicomdir, missing_files
from client.image_conflicts import Candidate, Identities, conflicts
from client.index_tally import Counted, Tally, tally
from client.labels import LabelTable
from client.mask_files import MaskFiles, check_mask
from client.quality_file import SiteQuality
from client.quality_gate import QualityGate
from client.reasons import LabelProblem, MaskProblem, Reason
from client.roles import Role, role_at, stated_role
from client.scan_memory import Record
from client.site_file import LabelKey
from shared_models.study import Study
from shared_models.tasks.task import MISSING, Label, TaskTable


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedImage:
    """One usable image. Patient and study are pseudonyms; the path is relative and stays at the site.

    ``has_window`` is false for a grey image without window or VOI lookup table: a study that uses windows sees its
    full range. ``burned_in`` is true where its header says that text in the picture identifies the patient. A volume
    has ``further`` files beside the first of its series.
    """

    path: str = field(repr=False)
    patient: str
    study: str
    label: Label
    role: Role
    has_window: bool
    burned_in: bool = False
    further: tuple[str, ...] = field(default=(), repr=False)
    demographics: Demographics = field(default_factory=Demographics, repr=False)

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all its files."""
        return (self.path, *self.further)

    @property
    def values(self) -> tuple[int, ...]:
        """Of the label: one, or one for each finding."""
        return self.label if isinstance(self.label, tuple) else (self.label,)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """One file that is not used. The detail names attributes and numbers, never a patient."""

    path: str = field(repr=False)
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What is in the images folder. Local to the site: counts and paths never leave it.

    Args:
        images: usable images, by path.
        left_out: the other files, by path.
        label_problems: how many rows (or keys) of the labels file have which problem.
        num_label_rows: rows of the labels file.
        num_patients_found: different Patient IDs in readable DICOM files, of whatever kind.
        task: the study's, which says what labels mean.
        finding_problems: those of the label problems that concern one finding, by finding.
        tally: what the headers add up to.
        mask_problems: how many files of the masks folder have which problem.
    """

    images: tuple[IndexedImage, ...]
    left_out: tuple[LeftOut, ...]
    label_problems: Mapping[LabelProblem, int]
    num_label_rows: int
    num_patients_found: int
    task: TaskTable
    finding_problems: Mapping[str, Mapping[LabelProblem, int]] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    mask_problems: Mapping[MaskProblem, int] = field(default_factory=dict)

    @property
    def num_files(self) -> int:
        """All files below the images folder, save the labels file; with those that a DICOMDIR names and that lack."""
        return self.num_used_files + len(self.left_out)

    @property
    def num_used_files(self) -> int:
        """Files of usable images; a volume has as many as its series."""
        return len(self.images) + sum(len(entry.further) for entry in self.images)

    @property
    def unusable_share(self) -> float:
        """Files left out over all files, 1 for an empty folder; patients who withdrew and DICOMDIRs count in neither.

        Every file that is left out counts, for whatever reason: a folder full of text files or RT plans is as much
        a sign of a wrong folder as one full of truncated images. Only the labels file itself is not counted.
        """
        not_counted = sum(file.reason in (Reason.WITHDRAWN, Reason.DICOMDIR) for file in self.left_out)
        counted = self.num_files - not_counted
        return (len(self.left_out) - not_counted) / counted if counted else 1.0

    @property
    def left_out_counts(self) -> dict[str, int]:
        """Number of files by the code of the reason, most frequent first."""
        return {reason.code: number for reason, number in self.left_out_reasons}

    @property
    def left_out_reasons(self) -> list[tuple[Reason, int]]:
        """Reasons and numbers of files, most frequent first."""
        counted = Counter(file.reason for file in self.left_out)
        return sorted(counted.items(), key=lambda item: (-item[1], item[0].code))

    def num_patients(self, role: Role | None = None, label: int | None = None, finding: int = 0) -> int:
        """Return how many patients are used, of a role and label where given.

        The label of a patient is the largest of the images' (`shared_models.tasks.patients`); where a label has several
        values, that of *finding*, which may be `shared_models.tasks.task.MISSING`.
        """
        if label is None:
            return len({entry.patient for entry in self.images if role in (None, entry.role)})
        return self.label_counts(role)[finding, label]

    def label_counts(self, role: Role | None = None) -> Mapping[tuple[int, int], int]:
        """Return how many patients of a role have each label, by (finding, label).

        Where a label has one value the finding is 0.
        """
        largest: dict[str, tuple[int, ...]] = {}
        for entry in self.images:
            if role in (None, entry.role):
                before = largest.get(entry.patient, entry.values)
                largest[entry.patient] = tuple(map(max, entry.values, before))
        return Counter(pair for label in largest.values() for pair in enumerate(label))

    def num_patients_by_class(self, role: Role | None = None) -> dict[str, int]:
        """Return how many patients, of a role where given, each class of the task has, by the class's name.

        Of several findings each has two: those who have it, and those who have it not. Of structures those who have it.
        """
        counts = self.label_counts(role)
        return {name: counts[place] for place, name in self.class_names.items()}

    @property
    def class_names(self) -> dict[tuple[int, int], str]:
        """Names of all classes by (finding, label), as of `label_counts`; without those of findings not known.

        Of masks these are the structures: that nobody is without one is nothing that is missing.
        """
        if self.task.mask_values:
            return {(number, 1): name for number, name in enumerate(self.task.finding_names)}
        if not self.task.finding_names:
            return {(0, label): name for label, name in enumerate(self.task.class_names)}
        return {
            (number, label): f"{finding}-{name}"
            for number, finding in enumerate(self.task.finding_names)
            for label, name in enumerate(self.task.class_names)
        }

    @property
    def num_studies(self) -> int:
        """Studies (in DICOM's sense) of which at least one image is used."""
        return len({entry.study for entry in self.images})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """An image that is usable as far as it itself goes; what all files together show is still to be settled."""

    path: str
    record: Record
    label: Label
    further: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all its files."""
        return (self.path, *self.further)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexBuilder:
    """Takes the records of all files, one after the other in their order, and makes the index of them.

    Guarantees: the same records, labels and study give the same index; each file is in it exactly once. Of several
    files with one SOPInstanceUID the first usable one is used.

    Args:
        labels: the labels file, by pseudonym (`client.labels.LabelTable.keyed`).
        study: what is wanted.
        key: the DICOM attribute that the labels file is keyed by.
        withdrawn: pseudonyms of patients whose images are left out.
        quality: what the site itself asks of files.
        masks: where the study learns from masks, those of the site.
    """

    labels: LabelTable
    study: Study
    key: LabelKey
    withdrawn: Collection[str]
    quality: SiteQuality = field(default_factory=SiteQuality)
    masks: MaskFiles | None = None
    records: dict[str, Record] = field(default_factory=dict)
    found: list[_Found] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    patients: set[str] = field(default_factory=set)
    instances: dict[str, str] = field(default_factory=dict)
    identities: Identities = field(default_factory=Identities)
    stated_roles: dict[str, set[Role]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of files that were added."""
        return len(self.found) + sum(len(image.further) for image in self.found) + len(self.left_out)

    def check_wanted(self, record: Record) -> Label:
        """Return the label of a file whose pixels are wanted, as far as is known by now.

        Args:
            record: of the file; its pixels need not have been read.

        Raises:
            Unusable: why the file is left out, whatever its pixels are.
        """
        if record.pseudonyms.get("PatientID") in self.withdrawn:
            raise Unusable(Reason.WITHDRAWN)
        if record.finding is not None and record.finding.stage in ("file", "header"):
            raise record.finding.raised()
        if (header := record.header) is not None:
            self._gate.check_header(header)
        required = ["PatientID", "StudyInstanceUID", "SOPInstanceUID", self.key]
        if self.study.image.depth is not None:
            required.append("SeriesInstanceUID")
        if missing := [keyword for keyword in required if not record.pseudonyms[keyword]]:
            raise Unusable(Reason.MISSING_IDENTIFIER, f"{', '.join(missing)} is empty.")
        label = self.labels.label_of(record.pseudonyms[self.key])
        used = self.instances.get(record.pseudonyms["SOPInstanceUID"])
        if used is not None:
            raise Unusable(Reason.DUPLICATE_FILE if used == record.content else Reason.DUPLICATE)
        structures = self.study.task.mask_values
        if structures and self.study.image.depth is None:
            check_mask(record.mask)
        pixels = record.pixels if record.finding is None else None
        if pixels is not None:
            self._gate.check_pixels(pixels)
        if structures:
            return (MISSING,) * len(structures) if pixels is None else pixels.present
        return label

    def add(self, path: str, record: Record) -> LeftOut | None:
        """Take the next file; return why it is left out, None where it is used as far as it itself goes."""
        self._note(path, record)
        try:
            label = self.check_wanted(record)
            if record.finding is not None:
                raise record.finding.raised()
        except Unusable as finding:
            left_out = LeftOut(path=path, reason=finding.reason, detail=finding.detail)
            self.left_out.append(left_out)
            return left_out
        self._use(_Found(path=path, record=record, label=label), [record])
        return None

    def add_volume(self, paths: Sequence[str], records: Sequence[Record]) -> None:
        """Take the files of a usable volume, each of which is wanted, and all of one patient and key."""
        for path, record in zip(paths, records, strict=True):
            self._note(path, record)
        label = self.check_wanted(records[0])
        self._use(_Found(path=paths[0], record=records[0], label=label, further=tuple(paths[1:])), records)

    def _note(self, path: str, record: Record) -> None:
        """Take what a file says of its patient, whether it is used or not."""
        self.records[path] = record
        self.identities.add(record.pseudonyms)
        self.keys.add(record.pseudonyms.get(self.key, ""))
        if patient := record.pseudonyms.get("PatientID"):
            self.patients.add(patient)

    def _use(self, image: _Found, records: Sequence[Record]) -> None:
        self.instances.update((record.pseudonyms["SOPInstanceUID"], record.content) for record in records)
        pseudonyms = image.record.pseudonyms
        roles = self.labels.roles.get(pseudonyms[self.key], ())
        self.stated_roles.setdefault(pseudonyms["PatientID"], set()).update(roles)
        self.found.append(image)

    def settle_dicomdirs(self, folder: Path, names: Sequence[str]) -> None:
        """Tell DICOMDIRs from other files without pixels, and add the files that they name and that are not there.

        Args:
            folder: the images folder.
            names: of all files below it, all of which were added.
        """
        settled = {file.path: file for file in self.left_out}
        for name in names:
            path = folder / name
            if name not in settled or not is_dicomdir(path):
                continue
            try:
                missing = missing_files(path, folder, names)
            except Unusable as finding:
                settled[name] = LeftOut(path=name, reason=finding.reason, detail=finding.detail)
                continue
            settled[name] = LeftOut(path=name, reason=Reason.DICOMDIR)
            for other in missing:
                settled.setdefault(other, LeftOut(path=other, reason=Reason.MISSING_FILE))
        self.left_out[:] = settled.values()

    def finished(self) -> Index:
        """Return the index of all files that were added."""
        images, left_out = self._settled()
        problems = dict(self.labels.problems)
        if unmatched := len(self.labels.keys - self.keys):
            problems[LabelProblem.NO_FILE] = unmatched
        return Index(
            images=tuple(images),
            left_out=tuple(sorted(left_out, key=lambda file: file.path)),
            label_problems=problems,
            num_label_rows=self.labels.num_rows,
            num_patients_found=len(self.patients),
            task=self.study.task,
            finding_problems=self.labels.finding_problems,
            tally=self._tally(left_out),
            mask_problems={} if self.masks is None else self.masks.problems(),
        )

    @property
    def _gate(self) -> QualityGate:
        return QualityGate(study=self.study.quality, site=self.quality)

    def _settled(self) -> tuple[list[IndexedImage], list[LeftOut]]:
        """Settle conflicts and roles, once all files are known."""
        images: list[IndexedImage] = []
        left_out = [self._with_owner(file) for file in self.left_out]
        against = conflicts(
            [self._candidate(image) for image in self.found],
            self.identities,
            self.study.quality,
            self.quality,
        )
        for image in self.found:
            if (reason := against.get(image.path)) is not None:
                left_out += [LeftOut(path=path, reason=reason) for path in image.paths]
                continue
            pseudonyms = image.record.pseudonyms
            try:
                role = self._role(pseudonyms["PatientID"], image.record.role_draw)
            except Unusable as finding:
                left_out += [
                    LeftOut(path=path, reason=finding.reason, detail=finding.detail) for path in image.paths
                ]
                continue
            images.append(
                IndexedImage(
                    path=image.path,
                    patient=pseudonyms["PatientID"],
                    study=pseudonyms["StudyInstanceUID"],
                    label=image.label,
                    role=role,
                    has_window=image.record.has_window,
                    burned_in=any(self._is_burned_in(path) for path in image.paths),
                    further=image.further,
                    demographics=_demographics(image.record),
                )
            )
        return images, left_out

    def _candidate(self, image: _Found) -> Candidate:
        pixels = image.record.pixels
        return Candidate(
            path=image.path,
            patient=image.record.pseudonyms["PatientID"],
            label=image.label,
            pixels="" if pixels is None or pixels.blank else pixels.digest,
            shared=any(self.identities.is_shared(self.records[path].pseudonyms) for path in image.paths),
        )

    def _is_burned_in(self, path: str) -> bool:
        header = self.records[path].header
        return header is not None and header.burned_in == "YES"

    def _with_owner(self, file: LeftOut) -> LeftOut:
        """A copy of an image that is there under another Patient ID too is no mere copy."""
        if (
            file.reason in (Reason.DUPLICATE, Reason.DUPLICATE_FILE)
            and self.study.quality.shared_pixels == "refuse"
            and self.identities.is_shared(self.records[file.path].pseudonyms)
        ):
            return LeftOut(path=file.path, reason=Reason.TWO_PATIENTS)
        return file

    def _tally(self, left_out: Sequence[LeftOut]) -> Tally:
        reasons = {file.path: file.reason for file in left_out}
        shared = {
            self.records[path].pseudonyms["PatientID"]
            for path, reason in reasons.items()
            if reason is Reason.TWO_PATIENTS
        }
        counted = (
            Counted(header, reasons.get(path))
            for path, record in self.records.items()
            if reasons.get(path) is not Reason.WITHDRAWN and (header := record.header) is not None
        )
        return tally(counted, self.identities, sorted(shared))

    def _role(self, patient: str, draw: float) -> Role:
        if self.study.patients.roles == "column":
            return stated_role(self.stated_roles[patient])
        return role_at(draw, self.study.patients)


def _demographics(record: Record) -> Demographics:
    header = record.header
    return (
        Demographics() if header is None else Demographics(sex=header.sex, age=header.age, maker=header.maker)
    )
