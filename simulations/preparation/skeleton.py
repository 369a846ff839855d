"""The bones of a synthetic chest."""

import numpy as np

from simulations.preparation.anatomy import Anatomy
from simulations.preparation.shading import Plane, step


def bone_depth(anatomy: Anatomy, x: Plane, y: Plane) -> Plane:
    """Depth of bone: posterior and anterior ribs, vertebrae, clavicles, shoulder blades."""
    side = np.abs(x)
    cage = step((0.9 * anatomy.width - 0.24 * np.maximum(0.0, -0.3 - y) - side) * 26.0)
    cage = cage * step((y + 0.72) * 14.0) * step((anatomy.diaphragm + 0.12 - y) * 9.0)
    arch = anatomy.rib_slope * side + 0.55 * (side - 0.22) ** 2
    back = _ribs((y - arch) / anatomy.rib_spacing + anatomy.rib_phase, 0.40) * step((side - 0.09) * 40.0)
    fore = _ribs((y + 0.55 * side - 0.6 * side**2) / anatomy.rib_spacing - anatomy.rib_phase, 0.34)
    fore = fore * step((side - 0.34) * 14.0)
    discs = 0.86 + 0.14 * np.clip(1.6 * np.cos(2 * np.pi * (y / 0.15 + anatomy.rib_phase)) + 0.5, -1.0, 1.0)
    spine = np.maximum(0.0, 1.0 - (x / 0.105) ** 2) * discs * (1.0 - 0.5 * step((y + 0.1) * 3.0))
    clavicle_y = -0.62 + 0.16 * (side - 0.1) - 0.42 * (side - 0.1) ** 2 + 0.03 * np.sin(7.0 * side)
    clavicle = tube((y - clavicle_y) / 0.042) * step((side - 0.09) * 40.0) * step((0.74 - side) * 30.0)
    blade_x = 0.66 - 0.16 * (y + 0.55)
    blade = (
        step((side - blade_x) * 34.0)
        * step((0.92 - side) * 20.0)
        * step((0.02 - y) * 9.0)
        * step((y + 0.66) * 9.0)
    )
    total: Plane = cage * (0.135 * back + 0.07 * fore) + 0.24 * spine + 0.19 * clavicle + 0.075 * blade
    return total


def _ribs(phase: Plane, width: float) -> Plane:
    """Bands of period 1 of which *width* is rib; cortical edges are denser than the middle."""
    distance = np.abs(phase - np.round(phase)) / (width / 2)
    return tube(distance)


def tube(distance: Plane) -> Plane:
    """Depth of a hollow bone at *distance* (1 is its edge) from its axis."""
    outer = np.maximum(0.0, 1.0 - distance**2)
    marrow = np.maximum(0.0, 1.0 - (distance / 0.72) ** 2)
    depth: Plane = np.sqrt(outer) - 0.45 * np.sqrt(marrow)
    return depth
