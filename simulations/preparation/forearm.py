"""A synthetic radiograph of a forearm: two long bones in soft tissue, one of them perhaps broken.

As in ``phantom``, path lengths along the beam add up to optical depth. A fracture is a thin dark line across the shaft
of one bone, or of both, behind which the far part of the bone is shifted and bent. What is no fracture and looks a
little like one is there too: growth plates of the young, the canal of the feeding vessel, a cast. Coordinates: y along
the arm from -1 (elbow) to 1 (wrist), x across it.
"""

from dataclasses import dataclass

import numpy as np

from simulations.preparation.anatomy import View
from simulations.preparation.phantom import BONE, SOFT_TISSUE, coordinates
from simulations.preparation.shading import Plane, cloud, step
from simulations.preparation.skeleton import tube

_THICKNESS = 0.26  # of the arm, in chests of 20 cm
_BONE_THICKNESS = 0.13
_ADULT = 17  # years, from when growth plates are closed


@dataclass(frozen=True, slots=True, kw_only=True)
class Fracture:
    """A break of one bone: where, how oblique and wide its line is, and how far the end is shifted and bent."""

    y: float
    slope: float
    gap: float
    depth: float
    shift: float
    bend: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bone:
    """A long bone: its axis x at y = 0, its bow, its half width, how much wider its ends are, and its break."""

    x: float
    bow: float
    half_width: float
    elbow_end: float
    wrist_end: float
    canal: float
    fracture: Fracture | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forearm:
    """What is the same in all images of one patient."""

    muscle: float
    density: float
    growth_plates: bool
    cast: bool
    bones: tuple[Bone, Bone]


def draw_forearm(
    generator: np.random.Generator, *, age_years: int, broken: bool, contrast: float = 1.0
) -> Forearm:
    """Draw one patient.

    Args:
        generator: the patient's own random numbers; all variation comes from it.
        age_years: the young have growth plates, the old less dense bones.
        broken: whether one bone is, or both are.
        contrast: scales how dark the line of a fracture is, and how far its ends are apart.
    """
    between = generator.uniform
    both = between() < 0.3
    first = int(generator.integers(2))
    bones = []
    for number in range(2):
        radius = number == 0
        drawn = Fracture(
            y=between(-0.15, 0.62) if radius else between(-0.5, 0.45),
            slope=between(-0.9, 0.9),
            gap=between(0.016, 0.036) * contrast,
            depth=min(1.0, contrast * between(0.45, 0.95)),
            shift=contrast * between(-0.5, 0.5),
            bend=contrast * between(-0.12, 0.12),
        )
        bones.append(
            Bone(
                x=(0.18 if radius else -0.18) + between(-0.015, 0.015),
                bow=between(-0.02, 0.06) * (1 if radius else -1),
                half_width=between(0.078, 0.096),
                elbow_end=between(0.1, 0.3) if radius else between(0.6, 1.0),
                wrist_end=between(0.8, 1.2) if radius else between(0.1, 0.3),
                canal=between(-0.4, 0.0),
                fracture=drawn if broken and (both or number == first) else None,
            )
        )
    return Forearm(
        muscle=between(0.42, 0.54),
        density=between(0.75, 1.25) * (0.85 if age_years > 65 else 1.0),
        growth_plates=age_years < _ADULT,
        cast=bool(between() < 0.15),
        bones=(bones[0], bones[1]),
    )


def draw_arm_view(generator: np.random.Generator) -> View:
    """Draw how the arm lies on the detector in one image: by far less upright than a chest stands."""
    return View(
        shift_x=generator.normal(0.0, 0.06),
        shift_y=generator.normal(0.0, 0.06),
        scale=generator.uniform(0.95, 1.25),
        rotation=generator.normal(0.0, 0.2),
    )


def forearm_depth(
    forearm: Forearm, view: View, rows: int, columns: int, generator: np.random.Generator
) -> Plane:
    """The attenuation of every ray: float32, shape (rows, columns), as of `phantom.optical_depth`."""
    x, y = coordinates(view, rows, columns)
    texture = cloud(generator, rows, columns)
    half = forearm.muscle * (1.0 - 0.28 * (y + 0.2))
    tissue = np.sqrt(np.maximum(0.0, 1.0 - (x / half) ** 2)) * (1.0 + 0.04 * texture)
    bone = np.zeros_like(texture)
    for one in forearm.bones:
        bone = bone + _bone_depth(forearm, one, x, y)
    depth = SOFT_TISSUE * _THICKNESS * tissue + BONE * _BONE_THICKNESS * forearm.density * bone * (
        1.0 + 0.08 * texture
    )
    if forearm.cast:
        shell = np.exp(-(((np.abs(x) - 1.12 * half) / 0.03) ** 2))
        depth = depth + 0.16 * (0.35 * step((1.15 * half - np.abs(x)) * 40.0) + shell)
    rays: Plane = np.maximum(depth, 0.0).astype(np.float32)
    return rays


def _bone_depth(forearm: Forearm, bone: Bone, x: Plane, y: Plane) -> Plane:
    """Depth of one bone: a tube that widens at its ends, cut and moved where it is broken."""
    axis = bone.x + bone.bow * (1.0 - y * y)
    line = np.zeros_like(x + y)
    if (broken := bone.fracture) is not None:
        behind = y - broken.y - broken.slope * (x - axis)
        far = step(behind * 260.0)
        axis = axis + far * (broken.shift * bone.half_width + broken.bend * (y - broken.y))
        line = broken.depth * np.exp(-((behind / broken.gap) ** 2))
    ends = bone.elbow_end * step((-0.72 - y) * 16.0) + bone.wrist_end * step((y - 0.66) * 16.0)
    depth = tube((x - axis) / (bone.half_width * (1.0 + ends))) * (1.0 - line)
    depth = depth * step((y + 0.98) * 40.0) * step((0.95 - y) * 40.0)
    course = (x - axis - 0.6 * (y - bone.canal)) / 0.012
    canal = 0.22 * np.exp(-(course**2)) * step((0.07 - np.abs(y - bone.canal)) * 120.0)
    depth = depth * (1.0 - canal)
    if forearm.growth_plates:
        for at in (-0.84, 0.8):
            depth = depth * (
                1.0 - 0.75 * np.exp(-(((y - at + 0.03 * np.cos(8.0 * (x - axis))) / 0.014) ** 2))
            )
    found: Plane = depth
    return found
