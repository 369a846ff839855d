"""A synthetic patient: what differs between people, and between two pictures of one person."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Opacity:
    """One pneumonia-like consolidation: centre and radii in the picture, and how much air it fills (0 to 1)."""

    x: float
    y: float
    radius_x: float
    radius_y: float
    tilt: float
    filling: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """What is the same in all images of one patient. Lengths are in half picture widths, depth in chests."""

    width: float
    depth: float
    lung_height: float
    lung_width: float
    diaphragm: float
    heart_size: float
    heart_tilt: float
    rib_spacing: float
    rib_slope: float
    rib_phase: float
    bone_density: float
    vessels: float
    breast: float
    gas: float
    nodules: tuple[tuple[float, float, float], ...]
    vessel_angles: tuple[float, ...]
    opacities: tuple[Opacity, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What differs between images of one patient: position, size, rotation, depth of breath."""

    shift_x: float = 0.0
    shift_y: float = 0.0
    scale: float = 1.0
    rotation: float = 0.0
    breath: float = 0.0


def draw_anatomy(
    generator: np.random.Generator, *, female: bool, positive: bool, contrast: float = 1.0, size: float = 1.0
) -> Anatomy:
    """Draw one patient.

    Args:
        generator: the patient's own random numbers; all variation comes from it.
        female: whether breast shadows are drawn.
        positive: whether the lungs hold opacities.
        contrast: scales how much of the air an opacity fills, up to all of it.
        size: scales the radii of opacities.
    """
    between = generator.uniform
    nodules = [
        (between(-0.6, 0.6), between(-0.5, 0.4), between(0.008, 0.02)) for _ in range(generator.integers(4))
    ]
    return Anatomy(
        width=between(0.8, 0.96),
        depth=between(0.8, 1.25),
        lung_height=between(0.62, 0.76),
        lung_width=between(0.29, 0.36),
        diaphragm=between(0.34, 0.56),
        heart_size=between(0.24, 0.36),
        heart_tilt=between(0.3, 0.8),
        rib_spacing=between(0.135, 0.175),
        rib_slope=between(0.15, 0.5),
        rib_phase=between(0.0, 1.0),
        bone_density=between(0.7, 1.3),
        vessels=between(0.5, 1.5),
        breast=between(0.04, 0.11) if female else 0.0,
        gas=between(0.0, 0.25),
        nodules=tuple(nodules),
        vessel_angles=tuple(between(-0.2, 0.2, size=12).tolist()),
        opacities=_draw_opacities(generator, contrast, size) if positive else (),
    )


def _draw_opacities(generator: np.random.Generator, contrast: float, size: float) -> tuple[Opacity, ...]:
    between = generator.uniform
    number = int(generator.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
    return tuple(
        Opacity(
            x=float(generator.choice([-1.0, 1.0])) * between(0.25, 0.58),
            y=between(-0.42, 0.38),
            radius_x=size * between(0.13, 0.3),
            radius_y=size * between(0.13, 0.3),
            tilt=between(0.0, np.pi),
            filling=min(1.0, contrast * between(0.5, 0.95)),
        )
        for _ in range(number)
    )


def draw_view(generator: np.random.Generator) -> View:
    """Draw how the patient stands before the detector in one image."""
    return View(
        shift_x=generator.normal(0.0, 0.025),
        shift_y=generator.normal(0.0, 0.04),
        scale=generator.uniform(1.0, 1.16),
        rotation=generator.normal(0.0, 0.02),
        breath=generator.normal(0.0, 0.03),
    )
