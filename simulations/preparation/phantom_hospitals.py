"""Synthetic hospitals: patients drawn one by one, each hospital with its own scanner and share of sick patients."""

from collections.abc import Callable

import numpy as np

from simulations.preparation.anatomy import draw_anatomy, draw_view
from simulations.preparation.cases import Case, Caseload, Image, hospital_names
from simulations.preparation.dicom_writer import GreyPicture, Header, Subject
from simulations.preparation.phantom import optical_depth
from simulations.preparation.scanner import Scanner, expose, scanner_of
from simulations.preparation.shading import Plane
from simulations.preparation.sources import PhantomSource

LABEL_COLUMN = "finding"
POSITIVE, NEGATIVE = "opacity", "clear"
_DETECTOR_MILLIMETRES = 430.0  # the longer side of a usual chest detector, 35 × 43 cm


def phantom_caseloads(source: PhantomSource, seed: int) -> tuple[Caseload, ...]:
    """Plan the hospitals of *source*; nothing is drawn on a picture yet.

    Every patient depends on (seed, hospital, patient) alone: a hospital with more patients has the same first ones.
    """
    names = hospital_names(source.num_hospitals)
    lowest, highest = source.prevalence
    caseloads = []
    for hospital, (name, num_patients) in enumerate(zip(names, source.num_patients, strict=True)):
        generator = np.random.default_rng([seed, hospital])
        varied = hospital if source.scanners == "varied" else 0
        scanner = scanner_of(varied, np.random.default_rng([seed, varied, 1]))
        prevalence = lowest + (highest - lowest) * spread(hospital, source.num_hospitals)
        sick = positives(num_patients, prevalence, generator)
        cases = tuple(
            _case(source, seed, (hospital, number), name, scanner, positive=number in sick)
            for number in range(num_patients)
        )
        shown = f"{scanner.name.replace('^', ' ')}, {scanner.modality}, {scanner.bits_stored} bit"
        caseloads.append(Caseload(name=name, scanner=shown, label_column=LABEL_COLUMN, cases=cases))
    return tuple(caseloads)


def spread(hospital: int, num_hospitals: int) -> float:
    """From 0 to 1 over the hospitals, out of step with the order of the scanners."""
    order = sorted(range(num_hospitals), key=lambda number: (number * 0.618034) % 1.0)
    return order.index(hospital) / max(1, num_hospitals - 1)


def positives(num_patients: int, prevalence: float, generator: np.random.Generator) -> frozenset[int]:
    """Which patients are sick: the share is met exactly, both labels are there."""
    number = min(max(round(prevalence * num_patients), 1), num_patients - 1)
    return frozenset(int(patient) for patient in generator.permutation(num_patients)[:number])


def _case(
    source: PhantomSource, seed: int, place: tuple[int, int], name: str, scanner: Scanner, *, positive: bool
) -> Case:
    generator = np.random.default_rng([seed, *place, 0])
    patient_id = f"{name}-{place[1] + 1:05d}"
    subject = Subject(
        patient_id=patient_id,
        name=f"Phantom^{place[1] + 1:04d}",
        sex=str(generator.choice(["F", "M"])),
        age_years=int(np.clip(generator.normal(58, 18), 18, 95)),
    )
    num_images = int(generator.choice([1, 2, 3], p=[0.8, 0.15, 0.05]))
    images = tuple(
        Image(
            header=_header(name, subject, scanner, number, source.image_size),
            picture=_picture(source, (seed, *place), scanner, subject, number, positive=positive),
        )
        for number in range(1, num_images + 1)
    )
    return Case(patient_id=patient_id, label=POSITIVE if positive else NEGATIVE, images=images)


def _header(name: str, subject: Subject, scanner: Scanner, number: int, image_size: int) -> Header:
    """Each image of a patient is a study of its own: the patient came back."""
    return Header(
        dataset="phantom",
        hospital=name,
        subject=subject,
        study=number,
        image=1,
        kind="digital-x-ray" if scanner.modality == "DX" else "computed-radiography",
        station=scanner.name,
        pixel_spacing=_DETECTOR_MILLIMETRES / (image_size * max(scanner.grid)),
        kvp=scanner.kvp,
    )


def _picture(
    source: PhantomSource,
    key: tuple[int, ...],
    scanner: Scanner,
    subject: Subject,
    number: int,
    *,
    positive: bool,
) -> Callable[[], GreyPicture]:
    def draw() -> GreyPicture:
        body = np.random.default_rng([*key, 1])
        anatomy = draw_anatomy(
            body,
            female=subject.sex == "F",
            positive=positive,
            contrast=source.contrast,
            size=source.opacity_size,
        )
        visit = np.random.default_rng([*key, 1 + number])
        rows, columns = (round(source.image_size * part) for part in scanner.grid)
        depth = optical_depth(anatomy, draw_view(visit), rows, columns, visit)
        return radiograph(scanner, depth, visit)

    return draw


def radiograph(scanner: Scanner, depth: Plane, generator: np.random.Generator) -> GreyPicture:
    """The picture that *scanner* takes and how it stores it; arguments as of `scanner.expose`."""
    return GreyPicture(
        pixels=expose(scanner, depth, generator),
        bits_stored=scanner.bits_stored,
        inverted=scanner.inverted,
        windowed=scanner.windowed,
        transfer_syntax=scanner.transfer_syntax,
    )
