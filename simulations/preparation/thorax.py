"""A synthetic chest in three dimensions: Hounsfield units at any place, with or without a nodule in a lung.

Coordinates are the patient's, in mm from the middle of the chest: x to the left, y to the back, z to the head. Lungs
hold air and vessels, which look in one slice as a nodule does; a nodule is round in all directions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]
"""One number at each of some places, of any shape."""

AIR, LUNG, SOFT, BONE = -1000.0, -850.0, 40.0, 350.0
_EDGE = 4.0
"""mm over which a border is blurred: about half a voxel of a coarse CT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ball:
    """A round nodule: its middle and its radius, mm."""

    middle: tuple[float, float, float]
    radius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Vessel:
    """A straight piece of a vessel from *start* to *end*, mm, that thins out."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Thorax:
    """One patient. Sizes are relative to a usual chest."""

    width: float
    depth: float
    lungs: float
    heart: float
    ribs: float
    vessels: tuple[Vessel, ...]
    nodule: Ball | None


def draw_thorax(generator: np.random.Generator, *, positive: bool, size: float) -> Thorax:
    """Draw one patient.

    Args:
        generator: the patient's own random numbers.
        positive: whether there is a nodule.
        size: scales its radius, which is 9 to 14 mm.
    """
    between = generator.uniform
    width, depth, lungs = between(0.88, 1.08), between(0.88, 1.08), between(0.9, 1.08)
    vessels = tuple(_draw_vessel(generator) for _ in range(int(generator.integers(10, 19))))
    direction = generator.standard_normal(3)
    place = direction / np.linalg.norm(direction) * between(0.2, 0.7)
    side = float(generator.choice([-1.0, 1.0]))
    nodule = Ball(
        middle=(side * 78.0 + 42.0 * place[0], 60.0 * place[1], 80.0 * place[2]),
        radius=size * between(9.0, 14.0),
    )
    return Thorax(
        width=width,
        depth=depth,
        lungs=lungs,
        heart=between(0.85, 1.15),
        ribs=between(0.0, 1.0),
        vessels=vessels,
        nodule=nodule if positive else None,
    )


def hounsfield_at(thorax: Thorax, x: Field, y: Field, z: Field) -> Field:
    """Return Hounsfield units at these places, which have one shape."""
    body = _inside(x / (165.0 * thorax.width), y / (112.0 * thorax.depth), 0.0 * z, 110.0)
    lung = np.maximum(*(_lung(thorax, x, y, z, side) for side in (-1.0, 1.0)))
    air = lung * (1.0 - _heart(thorax, x, y, z))
    for vessel in thorax.vessels:
        air = air * (1.0 - _along(vessel, x, y, z))
    if thorax.nodule is not None:
        air = air * (1.0 - _in_ball(thorax.nodule, x, y, z))
    bone = np.maximum(_inside(x / 19.0, (y - 72.0) / 22.0, 0.0 * z, 20.0), _ribs(thorax, x, y, z))
    tissue = SOFT + (BONE - SOFT) * bone
    inner: Field = tissue + (LUNG - tissue) * air
    return AIR + (inner - AIR) * body


def nodule_at(thorax: Thorax, x: Field, y: Field, z: Field) -> NDArray[np.bool_]:
    """Whether these places, which have one shape, belong to the nodule: so far as it lies in a lung and shows."""
    if thorax.nodule is None:
        return np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), dtype=np.bool_)
    lung = np.maximum(*(_lung(thorax, x, y, z, side) for side in (-1.0, 1.0)))
    ball: NDArray[np.bool_] = _in_ball(thorax.nodule, x, y, z) > 0.5
    return ball & (lung * (1.0 - _heart(thorax, x, y, z)) > 0.5)


def _in_ball(ball: Ball, x: Field, y: Field, z: Field) -> Field:
    (at_x, at_y, at_z), radius = ball.middle, ball.radius
    return _inside((x - at_x) / radius, (y - at_y) / radius, (z - at_z) / radius, radius)


def _heart(thorax: Thorax, x: Field, y: Field, z: Field) -> Field:
    return _inside(
        (x - 18.0) / (48.0 * thorax.heart), (y + 25.0) / (45.0 * thorax.heart), (z + 35.0) / 58.0, 50.0
    )


def _inside(x: Field, y: Field, z: Field, radius: float) -> Field:
    """From 1 within the unit ball to 0 without; *radius* in mm says how sharp the border is."""
    distance = (np.sqrt(x * x + y * y + z * z) - 1.0) * radius
    found: Field = 0.5 - 0.5 * np.tanh(distance / _EDGE)
    return found


def _lung(thorax: Thorax, x: Field, y: Field, z: Field, side: float) -> Field:
    size = thorax.lungs
    return _inside((x - side * 78.0) / (56.0 * size), y / (78.0 * size), (z - 5.0) / (125.0 * size), 60.0)


def _ribs(thorax: Thorax, x: Field, y: Field, z: Field) -> Field:
    """Bands around the chest that slope down to the front."""
    around = np.sqrt((x / (165.0 * thorax.width)) ** 2 + (y / (112.0 * thorax.depth)) ** 2)
    wall = np.exp(-(((around - 0.9) / 0.045) ** 2))
    phase = (z - 0.35 * y) / 28.0 + thorax.ribs
    found: Field = wall * (np.cos(2.0 * np.pi * phase) > 0.2)
    return found


def _draw_vessel(generator: np.random.Generator) -> Vessel:
    side = float(generator.choice([-1.0, 1.0]))
    start = np.array([side * 38.0, 0.0, 0.0]) + generator.normal(0.0, 6.0, 3)
    way = np.array([side * generator.uniform(0.2, 1.0), *generator.uniform(-1.0, 1.0, 2)])
    end = start + way / np.linalg.norm(way) * generator.uniform(40.0, 85.0)
    return Vessel(start=_place(start), end=_place(end), radius=float(generator.uniform(3.0, 6.0)))


def _place(point: Field) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in point)
    return x, y, z


def _along(vessel: Vessel, x: Field, y: Field, z: Field) -> Field:
    start, way = np.array(vessel.start), np.array(vessel.end) - np.array(vessel.start)
    from_start = (x - start[0], y - start[1], z - start[2])
    share = sum(part * step for part, step in zip(from_start, way, strict=True)) / float(way @ way)
    share = np.clip(share, 0.0, 1.0)
    squared = sum((part - share * step) ** 2 for part, step in zip(from_start, way, strict=True))
    found: Field = np.exp(-squared / (vessel.radius * (1.0 - 0.5 * share)) ** 2)
    return found
