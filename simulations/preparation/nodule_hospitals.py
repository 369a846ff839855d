"""Synthetic hospitals with CT volumes of the chest: each with its own scanner and share of patients with a nodule."""

from collections.abc import Callable

import numpy as np

from simulations.preparation.cases import Case, Caseload, Image, hospital_names
from simulations.preparation.dicom_writer import Header, SlicePicture, Subject
from simulations.preparation.phantom_hospitals import positives, spread
from simulations.preparation.sources import NodulePhantomSource
from simulations.preparation.thorax import draw_thorax, hounsfield_at
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
    images = []
    for study in range(1, 1 + int(generator.choice([1, 2], p=[0.9, 0.1]))):
        slices = _series(source, (*key, study), name, subject, scanner, positive=positive)
        if scanner.shuffled:
            slices = [slices[place] for place in generator.permutation(len(slices))]
        images += slices
    return Case(patient_id=patient_id, label=POSITIVE if positive else NEGATIVE, images=tuple(images))


def _series(
    source: NodulePhantomSource,
    key: tuple[int, int, int, int],
    name: str,
    subject: Subject,
    scanner: Tomograph,
    *,
    positive: bool,
) -> list[Image]:
    """One series, a study of its own: the slices from the first to the last."""
    visit = np.random.default_rng([*key, 2])
    spacing = float(visit.choice(scanner.slice_spacings))
    middle = visit.uniform(-6.0, 6.0, 3)
    number = round(_LENGTH / spacing)
    _, _, onwards = scanner.directions()
    return [
        Image(
            header=Header(
                dataset="nodule-phantom",
                hospital=name,
                subject=subject,
                study=key[3],
                image=place + 1,
                kind="computed-tomography",
                station=scanner.name,
                kvp=scanner.kvp,
            ),
            picture=_slice(
                source,
                (*key, place),
                scanner,
                middle + (place - (number - 1) / 2.0) * spacing * onwards,
                spacing,
                positive=positive,
            ),
        )
        for place in range(number)
    ]


def _slice(
    source: NodulePhantomSource,
    key: tuple[int, int, int, int, int],
    scanner: Tomograph,
    middle: Millimetres,
    thickness: float,
    *,
    positive: bool,
) -> Callable[[], SlicePicture]:
    def draw() -> SlicePicture:
        thorax = draw_thorax(np.random.default_rng([*key[:3], 1]), positive=positive, size=source.nodule_size)
        across, down, _ = scanner.directions()
        size, pixel = source.image_size, round(_FIELD_OF_VIEW / source.image_size, 4)
        steps = (np.arange(size) - (size - 1) / 2.0) * pixel
        x, y, z = (
            middle[axis] + across[axis] * steps[None, :] + down[axis] * steps[:, None] for axis in range(3)
        )
        noise = np.random.default_rng([*key, 3]).normal(0.0, scanner.noise, (size, size))
        return SlicePicture(
            hounsfield=np.rint(np.clip(hounsfield_at(thorax, x, y, z) + noise, -1024.0, 3000.0)).astype(
                np.int16
            ),
            position=middle + across * steps[0] + down * steps[0],
            across=across,
            down=down,
            pixel_spacing=pixel,
            thickness=thickness,
            signed=scanner.signed,
            transfer_syntax=scanner.transfer_syntax,
        )

    return draw
