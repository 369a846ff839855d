"""Synthetic hospitals with CT volumes of the chest: each with its own scanner and share of patients with a nodule."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulations.preparation.cases import Case, Caseload, Image, Mask, hospital_names
from simulations.preparation.dicom_writer import Header, SlicePicture, Subject
from simulations.preparation.mask_writer import MaskedSlice, seg_bytes
from simulations.preparation.phantom_hospitals import positives, spread
from simulations.preparation.sources import NodulePhantomSource
from simulations.preparation.thorax import Thorax, draw_thorax, hounsfield_at, nodule_at
from simulations.preparation.tomograph import TOMOGRAPHS, Millimetres, Tomograph

LABEL_COLUMN = "finding"
POSITIVE, NEGATIVE = "nodule", "clear"
_FIELD_OF_VIEW, _LENGTH = 360.0, 170.0
"""mm across, and from the first slice to the last, about."""


def nodule_caseloads(source: NodulePhantomSource, seed: int) -> tuple[Caseload, ...]:
    """Plan the hospitals of *source*; nothing is drawn yet.

    Every patient depends on (seed, hospital, patient) alone: a hospital with more patients has the same first ones.
    """
    names = hospital_names(source.num_hospitals)
    lowest, highest = source.prevalence
    caseloads = []
    for hospital, (name, num_patients) in enumerate(zip(names, source.num_patients, strict=True)):
        scanner = TOMOGRAPHS[hospital % len(TOMOGRAPHS)]
        prevalence = lowest + (highest - lowest) * spread(hospital, source.num_hospitals)
        sick = positives(num_patients, prevalence, np.random.default_rng([seed, hospital]))
        cases = tuple(
            _case(source, (seed, hospital, number), name, scanner, positive=number in sick)
            for number in range(num_patients)
        )
        shown = f"{scanner.name.replace('^', ' ')}, CT, slices every {_shown(scanner)} mm"
        caseloads.append(Caseload(name=name, scanner=shown, label_column=LABEL_COLUMN, cases=cases))
    return tuple(caseloads)


def _shown(scanner: Tomograph) -> str:
    return " or ".join(f"{spacing:g}" for spacing in scanner.slice_spacings)


def _case(
    source: NodulePhantomSource, key: tuple[int, int, int], name: str, scanner: Tomograph, *, positive: bool
) -> Case:
    generator = np.random.default_rng([*key, 0])
    patient_id = f"{name}-{key[2] + 1:05d}"
    subject = Subject(
        patient_id=patient_id,
        name=f"Phantom^{key[2] + 1:04d}",
        sex=str(generator.choice(["F", "M"])),
        age_years=int(np.clip(generator.normal(62, 12), 18, 95)),
    )
    images, masks = list[Image](), list[Mask]()
    for study in range(1, 1 + int(generator.choice([1, 2], p=[0.9, 0.1]))):
        slices = _series(source, (*key, study), name, subject, scanner, positive=positive)
        if source.masks:
            masks.append(Mask(name=f"{study}.dcm", content=_mask(tuple(slices))))
        if scanner.shuffled:
            slices = [slices[place] for place in generator.permutation(len(slices))]
        images += [Image(header=one.header, picture=one.picture) for one in slices]
    return Case(
        patient_id=patient_id,
        label=POSITIVE if positive else NEGATIVE,
        images=tuple(images),
        masks=tuple(masks),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slice:
    """One slice to be: its header, and the functions that make its picture, and what of it is the nodule."""

    header: Header
    picture: Callable[[], SlicePicture]
    inside: Callable[[], NDArray[np.bool_]]


def _mask(slices: tuple[_Slice, ...]) -> Callable[[], bytes]:
    return lambda: seg_bytes(
        [MaskedSlice(header=one.header, picture=one.picture(), inside=one.inside()) for one in slices],
        label=POSITIVE,
    )


def _series(
    source: NodulePhantomSource,
    key: tuple[int, int, int, int],
    name: str,
    subject: Subject,
    scanner: Tomograph,
    *,
    positive: bool,
) -> list[_Slice]:
    """One series, a study of its own: the slices from the first to the last."""
    visit = np.random.default_rng([*key, 2])
    spacing = float(visit.choice(scanner.slice_spacings))
    middle = visit.uniform(-6.0, 6.0, 3)
    number = round(_LENGTH / spacing)
    _, _, onwards = scanner.directions()
    drawn = []
    for place in range(number):
        slab = _Slab(
            source=source,
            key=(*key, place),
            scanner=scanner,
            middle=middle + (place - (number - 1) / 2.0) * spacing * onwards,
            thickness=spacing,
            positive=positive,
        )
        header = Header(
            dataset="nodule-phantom",
            hospital=name,
            subject=subject,
            study=key[3],
            image=place + 1,
            kind="computed-tomography",
            station=scanner.name,
            kvp=scanner.kvp,
        )
        drawn.append(_Slice(header=header, picture=slab.picture, inside=slab.inside))
    return drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slab:
    """Where one slice lies, of which patient and by which scanner; *key* is (seed, hospital, patient, study, place)."""

    source: NodulePhantomSource
    key: tuple[int, int, int, int, int]
    scanner: Tomograph
    middle: Millimetres
    thickness: float
    positive: bool

    def picture(self) -> SlicePicture:
        """Draw it."""
        scanner, size = self.scanner, self.source.image_size
        across, down, _ = scanner.directions()
        noise = np.random.default_rng([*self.key, 3]).normal(0.0, scanner.noise, (size, size))
        return SlicePicture(
            hounsfield=np.rint(
                np.clip(hounsfield_at(self._thorax, *self._places) + noise, -1024.0, 3000.0)
            ).astype(np.int16),
            position=self.middle + across * self._steps[0] + down * self._steps[0],
            across=across,
            down=down,
            pixel_spacing=self._pixel,
            thickness=self.thickness,
            signed=scanner.signed,
            transfer_syntax=scanner.transfer_syntax,
        )

    def inside(self) -> NDArray[np.bool_]:
        """Return what of it is the nodule."""
        return nodule_at(self._thorax, *self._places)

    @property
    def _thorax(self) -> Thorax:
        generator = np.random.default_rng([*self.key[:3], 1])
        return draw_thorax(generator, positive=self.positive, size=self.source.nodule_size)

    @property
    def _pixel(self) -> float:
        return round(_FIELD_OF_VIEW / self.source.image_size, 4)

    @property
    def _steps(self) -> Millimetres:
        steps: Millimetres = np.arange(self.source.image_size, dtype=np.float64)
        return (steps - (self.source.image_size - 1) / 2.0) * self._pixel

    @property
    def _places(self) -> tuple[Millimetres, Millimetres, Millimetres]:
        across, down, _ = self.scanner.directions()
        x, y, z = (
            self.middle[axis] + across[axis] * self._steps[None, :] + down[axis] * self._steps[:, None]
            for axis in range(3)
        )
        return x, y, z
