"""Synthetic hospitals with radiographs of forearms: each with its own scanner and share of patients with a fracture."""

from collections.abc import Callable

import numpy as np

from simulations.preparation.cases import Case, Caseload, Image, hospital_names
from simulations.preparation.dicom_writer import GreyPicture, Header, Subject
from simulations.preparation.forearm import draw_arm_view, draw_forearm, forearm_depth
from simulations.preparation.phantom_hospitals import positives, radiograph, spread
from simulations.preparation.scanner import Scanner, scanner_of
from simulations.preparation.sources import FracturePhantomSource

LABEL_COLUMN = "finding"
POSITIVE, NEGATIVE = "fracture", "intact"
_DETECTOR_MILLIMETRES = 240.0


def fracture_caseloads(source: FracturePhantomSource, seed: int) -> tuple[Caseload, ...]:
    """Plan the hospitals of *source*; nothing is drawn on a picture yet.

    Every patient depends on (seed, hospital, patient) alone: a hospital with more patients has the same first ones.
    """
    names = hospital_names(source.num_hospitals)
    lowest, highest = source.prevalence
    caseloads = []
    for hospital, (name, num_patients) in enumerate(zip(names, source.num_patients, strict=True)):
        scanner = scanner_of(hospital, np.random.default_rng([seed, hospital, 1]))
        prevalence = lowest + (highest - lowest) * spread(hospital, source.num_hospitals)
        broken = positives(num_patients, prevalence, np.random.default_rng([seed, hospital]))
        cases = tuple(
            _case(source, (seed, hospital, number), name, scanner, positive=number in broken)
            for number in range(num_patients)
        )
        shown = f"{scanner.name.replace('^', ' ')}, {scanner.modality}, {scanner.bits_stored} bit"
        caseloads.append(Caseload(name=name, scanner=shown, label_column=LABEL_COLUMN, cases=cases))
    return tuple(caseloads)


def _case(
    source: FracturePhantomSource, key: tuple[int, int, int], name: str, scanner: Scanner, *, positive: bool
) -> Case:
    generator = np.random.default_rng([*key, 0])
    patient_id = f"{name}-{key[2] + 1:05d}"
    subject = Subject(
        patient_id=patient_id,
        name=f"Phantom^{key[2] + 1:04d}",
        sex=str(generator.choice(["F", "M"])),
        age_years=int(np.clip(generator.normal(40, 24), 5, 95)),
    )
    images = tuple(
        Image(
            header=Header(
                dataset="fracture-phantom",
                hospital=name,
                subject=subject,
                study=number,
                image=1,
                kind=("digital-x-ray" if scanner.modality == "DX" else "computed-radiography") + "-forearm",
                station=scanner.name,
                pixel_spacing=_DETECTOR_MILLIMETRES / (source.image_size * max(scanner.grid)),
                kvp=scanner.kvp,
            ),
            picture=_picture(source, key, scanner, subject, number, positive=positive),
        )
        for number in range(1, 1 + int(generator.choice([1, 2], p=[0.8, 0.2])))
    )
    return Case(patient_id=patient_id, label=POSITIVE if positive else NEGATIVE, images=images)


def _picture(
    source: FracturePhantomSource,
    key: tuple[int, int, int],
    scanner: Scanner,
    subject: Subject,
    number: int,
    *,
    positive: bool,
) -> Callable[[], GreyPicture]:
    def draw() -> GreyPicture:
        forearm = draw_forearm(
            np.random.default_rng([*key, 1]),
            age_years=subject.age_years or 0,
            broken=positive,
            contrast=source.contrast,
        )
        visit = np.random.default_rng([*key, 1 + number])
        rows, columns = (round(source.image_size * part) for part in scanner.grid)
        depth = forearm_depth(forearm, draw_arm_view(visit), rows, columns, visit)
        return radiograph(scanner, depth, visit)

    return draw
