"""Writing and reading prepared hospitals: folders as real hospitals would have them.

::

    OUT/hospitals.json                          what was prepared; written last, so its presence means: complete
    OUT/<hospital>/labels.csv                   PatientID, the label's column, and role where the source fixes it
    OUT/<hospital>/images/<patient>/<n>.dcm
    OUT/<hospital>/masks/<patient>/...          where the source has masks: <n>.png, or <study>.dcm for a series

While a preparation is under way, ``hospitals.partial.json`` stands in place of ``hospitals.json``. An interrupted
preparation is taken up again by preparing the same thing; the same source, options and seed give the same bytes.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from shared_models.configuration import Frozen
from simulations.preparation.cases import Caseload
from simulations.preparation.hospital_folder import IMAGES_NAME, LABELS_NAME, MASKS_NAME, write_hospital
from simulations.preparation.leftovers import remove, survey
from simulations.preparation.source_files import fingerprint, open_source
from simulations.preparation.sources import Source

RECORD_NAME = "hospitals.json"
PARTIAL_NAME = "hospitals.partial.json"
PREPARATION = 1  # counted up whenever the same source and seed would give other bytes

Progress = Callable[[int, int], None]
"""Called with the number of images written so far and of all images."""


class PreparationError(ValueError):
    """A folder cannot be used for prepared hospitals. The message says why, and what to do."""


class Hospital(Frozen):
    """One prepared hospital. ``folder`` is absolute or relative as the caller named OUT."""

    name: str
    folder: Path
    label_key: Literal["PatientID"]
    label_column: str
    has_roles: bool
    scanner: str
    num_patients: int
    num_images: int
    num_masks: int = 0
    label_counts: dict[str, int]

    @property
    def images(self) -> Path:
        """The folder of the hospital's DICOM files."""
        return self.folder / IMAGES_NAME

    @property
    def masks(self) -> Path:
        """The folder of the masks, where there are any."""
        return self.folder / MASKS_NAME

    @property
    def labels_file(self) -> Path:
        """The hospital's labels file."""
        return self.folder / LABELS_NAME


class Prepared(Frozen):
    """What ``hospitals.json`` says. ``fingerprint`` is the SHA-256 of the source's files, empty without files."""

    preparation: int
    source: Source
    seed: int
    fingerprint: str
    hospitals: tuple[Hospital, ...] = Field(strict=False)


def prepare(
    source: Source, out: Path, seed: int, progress: Progress | None = None, *, overwrite: bool = False
) -> tuple[Hospital, ...]:
    """Write the hospitals of *source* below *out*, or find that they are already there.

    Args:
        source: which images, and how they are spread.
        out: an empty or new folder, or one with an earlier preparation.
        seed: at least 0; decides everything that is drawn.
        progress: told after each image.
        overwrite: whether an earlier preparation of something else may be removed. Only files that Collegium
            itself wrote are ever removed.

    Returns:
        The hospitals, in their order. A complete preparation of the same source, options and seed is returned as
        it is; an interrupted one is written again.

    Raises:
        PreparationError: *out* holds something else.
        SourceError: the source's files are missing or wrong.
        PartitionError: the patients cannot be spread as asked.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; must be at least 0")
    wanted = Prepared(
        preparation=PREPARATION,
        source=source,
        seed=seed,
        fingerprint=fingerprint(source),
        hospitals=(),
    )
    if (out / RECORD_NAME).exists() and not overwrite:
        existing = read_hospitals(out)
        if _identity(existing) == _identity(wanted):
            return existing.hospitals
        raise PreparationError(
            f"{out}: holds another preparation ({_shown(existing)}); choose another folder, or overwrite it"
        )
    with open_source(source, seed) as caseloads:
        _make_room(out, wanted, overwrite=overwrite)
        hospitals = _write(caseloads, out, progress)
        _write_record(out / RECORD_NAME, wanted.model_copy(update={"hospitals": hospitals}))
        (out / PARTIAL_NAME).unlink()
    return hospitals


def read_hospitals(out: Path) -> Prepared:
    """Read what was prepared below *out*.

    Raises:
        PreparationError: nothing was prepared there, the preparation was interrupted, or files are missing since.
    """
    if (out / PARTIAL_NAME).exists():
        raise PreparationError(
            f"{out}: the preparation was interrupted and is not complete; prepare it again"
        )
    prepared = _read_record(out, RECORD_NAME)
    for hospital in prepared.hospitals:
        found = sum(1 for _ in hospital.images.glob("*/*.dcm"))
        masks = sum(1 for _ in hospital.masks.glob("*/*"))
        if (found, masks) != (hospital.num_images, hospital.num_masks) or not hospital.labels_file.is_file():
            raise PreparationError(
                f"{hospital.folder}: holds {found} of {hospital.num_images} images"
                f"{f', {masks} of {hospital.num_masks} masks' if hospital.num_masks else ''}"
                f"{'' if hospital.labels_file.is_file() else ' and no labels.csv'}; prepare it again with overwrite"
            )
    return prepared


def _read_record(out: Path, name: str) -> Prepared:
    try:
        values = json.loads((out / name).read_text("utf-8"))
        for hospital in values["hospitals"]:
            hospital["folder"] = str(out / hospital["name"])
        return Prepared.model_validate_json(json.dumps(values))
    except FileNotFoundError as error:
        raise PreparationError(f"{out}: holds no {name}; prepare hospitals there first") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, ValidationError, KeyError, TypeError) as error:
        raise PreparationError(
            f"{out / name}: cannot be read; remove the folder {out} and prepare it again"
        ) from error


def _make_room(out: Path, wanted: Prepared, *, overwrite: bool) -> None:
    """Leave *out* with nothing but the mark of a preparation under way, and files that it will write over."""
    record = next((name for name in (PARTIAL_NAME, RECORD_NAME) if (out / name).exists()), None)
    if record is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PreparationError(
            f"{out}: is not empty and was not prepared by Collegium; choose another folder"
        )
    if record is not None and overwrite:
        _clear(out, record)
    elif record is not None and _identity(_read_record(out, record)) != _identity(wanted):
        raise PreparationError(
            f"{out}: holds an interrupted preparation of something else; overwrite it, or choose another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_record(out / PARTIAL_NAME, wanted)


def _clear(out: Path, record: str) -> None:
    """Remove an earlier preparation; what we did not write stops us before anything is removed."""
    ours, foreign = survey(out, keep=frozenset({RECORD_NAME, PARTIAL_NAME}))
    if foreign:
        raise PreparationError(
            f"{foreign[0]}: was not written by Collegium and is in the way of overwriting; move it elsewhere"
        )
    (out / record).replace(out / PARTIAL_NAME)
    (out / RECORD_NAME).unlink(missing_ok=True)
    remove(out, ours)


def _write(caseloads: tuple[Caseload, ...], out: Path, progress: Progress | None) -> tuple[Hospital, ...]:
    total, done = sum(caseload.num_images for caseload in caseloads), 0

    def wrote(num_images: int) -> None:
        nonlocal done
        done += num_images
        if progress is not None:
            progress(done, total)

    for caseload in caseloads:
        write_hospital(out / caseload.name, caseload, wrote)
    return tuple(_hospital(caseload, out) for caseload in caseloads)


def _hospital(caseload: Caseload, out: Path) -> Hospital:
    return Hospital(
        name=caseload.name,
        folder=out / caseload.name,
        label_key="PatientID",
        label_column=caseload.label_column,
        has_roles=caseload.has_roles,
        scanner=caseload.scanner,
        num_patients=len(caseload.cases),
        num_images=caseload.num_images,
        num_masks=caseload.num_masks,
        label_counts=dict(caseload.label_counts),
    )


def _identity(prepared: Prepared) -> Mapping[str, object]:
    """What makes two preparations the same: where the source's files lie does not matter, their content does."""
    values = prepared.model_dump(mode="json", exclude={"hospitals": True, "source": {"file", "folder"}})
    return dict(values)


def _write_record(path: Path, prepared: Prepared) -> None:
    """Write in one atomic step. Folders are left out, so that all of OUT may be moved."""
    values = prepared.model_dump(mode="json", exclude={"hospitals": {"__all__": {"folder"}}})
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=2, sort_keys=True, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _shown(prepared: Prepared) -> str:
    return f"{prepared.source.kind}, {len(prepared.hospitals)} hospitals, seed {prepared.seed}"
