"""The index of a hospital's images folder: each file gives one usable image or one reason why not."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from client.dicom_file import Unusable, identifiers_of, opened, read_header
from client.dicom_image import check_image
from client.labels import LabelTable
from client.preparation import Plane
from client.reasons import LabelProblem, Reason
from client.roles import Role, role_of, stated_role
from client.secret import SiteSecret
from client.site_file import LabelKey
from shared_models.study import Image, Study

Progress = Callable[[int, int], None]
Keep = Callable[[str, Plane], None]
Prepare = Callable[[Path, Image], tuple[Plane, bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedImage:
    """One usable image. Patient and study are pseudonyms; the path is relative and stays at the site.

    ``has_window`` is false for a grey image without window or VOI lookup table: a study that uses windows sees its
    full range.
    """

    path: str = field(repr=False)
    patient: str
    study: str
    label: int
    role: Role
    has_window: bool


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
    """

    images: tuple[IndexedImage, ...]
    left_out: tuple[LeftOut, ...]
    label_problems: Mapping[LabelProblem, int]
    num_label_rows: int
    num_patients_found: int

    @property
    def num_files(self) -> int:
        """All files below the images folder, save the labels file."""
        return len(self.images) + len(self.left_out)

    @property
    def unusable_share(self) -> float:
        """Files left out over all files, 1 for an empty folder; files of patients who withdrew count in neither.

        Every file that is left out counts, for whatever reason: a folder full of text files or RT plans is as much
        a sign of a wrong folder as one full of truncated images. Only the labels file itself is not counted.
        """
        withdrawn = sum(file.reason is Reason.WITHDRAWN for file in self.left_out)
        counted = self.num_files - withdrawn
        return (len(self.left_out) - withdrawn) / counted if counted else 1.0

    @property
    def left_out_counts(self) -> dict[str, int]:
        """Number of files by the code of the reason, most frequent first."""
        return {reason.code: number for reason, number in self.left_out_reasons}

    @property
    def left_out_reasons(self) -> list[tuple[Reason, int]]:
        """Reasons and numbers of files, most frequent first."""
        counted = Counter(file.reason for file in self.left_out)
        return sorted(counted.items(), key=lambda item: (-item[1], item[0].code))

    def num_patients(self, role: Role | None = None, label: int | None = None) -> int:
        """Return how many patients are used, of a role and label where given.

        The label of a patient is 1 where any of the patient's images has it.
        """
        positive = {entry.patient for entry in self.images if entry.label == 1}
        return len(
            {
                entry.patient
                for entry in self.images
                if role in (None, entry.role) and label in (None, int(entry.patient in positive))
            }
        )

    @property
    def num_studies(self) -> int:
        """Studies (in DICOM's sense) of which at least one image is used."""
        return len({entry.study for entry in self.images})


def build_index(
    folder: Path,
    labels: LabelTable,
    study: Study,
    secret: SiteSecret,
    *,
    key: LabelKey,
    prepare: Prepare,
    exclude: Path | None = None,
    withdrawn: Collection[str] = (),
    keep: Keep = lambda path, array: None,
    progress: Progress = lambda done, total: None,
) -> Index:
    """Read every file below *folder* once and say of each what it gives.

    Guarantees: the same folder, labels, study and secret give the same index; each file is in it exactly once;
    no file, however broken, ends the walk. Of several files with one SOPInstanceUID the first usable one, by path,
    is used.

    Args:
        folder: the hospital's images folder.
        labels: the labels file.
        study: what images and values are wanted.
        secret: makes pseudonyms and roles.
        key: the DICOM attribute that the labels file is keyed by.
        prepare: reads and decodes one file, and tells whether it has a window, as
            `client.decoding.DecodingWorker.prepare` does.
        exclude: a file that is not counted if it lies in the folder: the labels file.
        withdrawn: pseudonyms of patients whose images are left out.
        keep: gets each prepared image by its path in the index. An image that is left out at the end, because its
            patient's role is unclear, was given to it too.
        progress: called with files done and files in all.

    Raises:
        OSError: the folder itself cannot be listed.
    """
    paths = [path for path in _files(folder) if exclude is None or path.resolve() != exclude.resolve()]
    walk = _Walk(labels=labels, study=study, secret=secret, key=key, prepare=prepare, withdrawn=withdrawn)
    left_out: list[LeftOut] = []
    for number, path in enumerate(paths, start=1):
        name = path.relative_to(folder).as_posix()
        try:
            keep(name, walk.visit(path, name))
        except Unusable as finding:
            left_out.append(LeftOut(path=name, reason=finding.reason, detail=finding.detail))
        progress(number, len(paths))
    images, without_role = walk.with_roles()
    problems = dict(labels.problems)
    if unmatched := len(labels.keys - walk.keys):
        problems[LabelProblem.NO_FILE] = unmatched
    return Index(
        images=tuple(images),
        left_out=tuple(sorted([*left_out, *without_role], key=lambda file: file.path)),
        label_problems=problems,
        num_label_rows=labels.num_rows,
        num_patients_found=len(walk.patients),
    )


def _files(folder: Path) -> list[Path]:
    """Everything below *folder* that is not a folder, in a fixed order; folders that are links or cannot be listed."""
    files: list[Path] = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.is_symlink():
            files.append(path)
            continue
        try:
            files += _files(path)
        except OSError:
            files.append(path)  # reading it will say why
    return files


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """An image that is usable as far as it itself goes; its patient's role is still to be settled."""

    path: str
    patient: str
    study: str
    label: int
    has_window: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Walk:
    """One walk through the folder. What it has seen grows; identifiers stay in here."""

    labels: LabelTable
    study: Study
    secret: SiteSecret
    key: LabelKey
    prepare: Prepare
    withdrawn: Collection[str]
    found: list[_Found] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    patients: set[str] = field(default_factory=set)
    instances: set[str] = field(default_factory=set)
    stated_roles: dict[str, set[Role]] = field(default_factory=dict)

    def visit(self, path: Path, name: str) -> Plane:
        """Read one file, cheap checks first, and return the prepared image. Raises Unusable."""
        image = self.study.image
        with opened(path) as file:
            header = read_header(file)
            identifiers = identifiers_of(header)
            key = identifiers.value(self.key)
            self.keys.add(key)
            if identifiers.PatientID:
                self.patients.add(identifiers.PatientID)
                if self.secret.pseudonym("patient", identifiers.PatientID) in self.withdrawn:
                    raise Unusable(Reason.WITHDRAWN)
            check_image(header, file, image)
            identifiers.require("PatientID", "StudyInstanceUID", "SOPInstanceUID", self.key)
            label = self.labels.label_of(key)
            if identifiers.SOPInstanceUID in self.instances:
                raise Unusable(Reason.DUPLICATE)
        prepared, with_window = self.prepare(path, image)
        self.instances.add(identifiers.SOPInstanceUID)
        self.stated_roles.setdefault(identifiers.PatientID, set()).update(self.labels.roles.get(key, ()))
        self.found.append(
            _Found(
                path=name,
                patient=identifiers.PatientID,
                study=identifiers.StudyInstanceUID,
                label=label,
                has_window=with_window,
            )
        )
        return prepared

    def with_roles(self) -> tuple[list[IndexedImage], list[LeftOut]]:
        """Settle roles, once all images of each patient are known, and put pseudonyms for identifiers."""
        images: list[IndexedImage] = []
        left_out: list[LeftOut] = []
        for image in self.found:
            try:
                role = self._role(image.patient)
            except Unusable as finding:
                left_out.append(LeftOut(path=image.path, reason=finding.reason, detail=finding.detail))
                continue
            images.append(
                IndexedImage(
                    path=image.path,
                    patient=self.secret.pseudonym("patient", image.patient),
                    study=self.secret.pseudonym("study", image.study),
                    label=image.label,
                    role=role,
                    has_window=image.has_window,
                )
            )
        return images, left_out

    def _role(self, patient: str) -> Role:
        if self.study.patients.roles == "column":
            return stated_role(self.stated_roles[patient])
        return role_of(patient, self.secret, self.study.patients)
