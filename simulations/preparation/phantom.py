"""A synthetic frontal chest radiograph: how much each ray through a body is attenuated.

The body is a thorax of soft tissue in which lie lungs (air), heart, great vessels, diaphragm, spine, ribs,
clavicles and scapulae. Path lengths along the beam add up to optical depth (Beer-Lambert); what a detector makes
of it is ``scanner``'s. Every patient has an anatomy of their own; a patient with pneumonia has one to three
opacities in the lungs. Coordinates: x from -1 (patient's right, the picture's left) to 1, y from -1 (top) to 1.
"""

import math

import numpy as np

from simulations.preparation.anatomy import Anatomy, View
from simulations.preparation.shading import Plane, bump, cloud, step
from simulations.preparation.skeleton import bone_depth

# Linear attenuation at about 65 keV, scaled so that one unit is the depth of an average chest (20 cm).
SOFT_TISSUE = 2.3
AERATED_LUNG = 0.3  # relative to soft tissue: lungs are about 30 % as dense
BONE = 3.0  # what bone adds to the soft tissue that it replaces


def optical_depth(
    anatomy: Anatomy, view: View, rows: int, columns: int, generator: np.random.Generator
) -> Plane:
    """The attenuation of every ray.

    Args:
        anatomy: the patient.
        view: the position in this image.
        rows: height of the picture in pixels.
        columns: width of the picture in pixels.
        generator: draws the fine texture of lungs and opacities.

    Returns:
        float32, shape (rows, columns): the optical depth; the transmitted share of the beam is ``exp(-depth)``.
    """
    x, y = coordinates(view, rows, columns)
    texture = cloud(generator, rows, columns)
    body = _body(anatomy, x, y)
    air = _air(anatomy, view, x, y) * (1.0 - _filled(anatomy, x, y, texture))
    interstitium = 0.05 * texture + anatomy.vessels * _vessels(anatomy, x, y)
    stomach = anatomy.gas * bump((x - 0.38) / 0.13, (y - anatomy.diaphragm - 0.2) / 0.07)

    soft = body - (1.0 - AERATED_LUNG) * air + interstitium * air + _breasts(anatomy, x, y) - stomach
    bone = anatomy.bone_density * bone_depth(anatomy, x, y) * np.minimum(1.0, 3.0 * body)
    depth: Plane = np.maximum(SOFT_TISSUE * anatomy.depth * soft + BONE * bone, 0.0)
    return depth


def coordinates(view: View, rows: int, columns: int) -> tuple[Plane, Plane]:
    """The x and y of every pixel's ray in the patient, after position and rotation; pixels are square."""
    half = 1.0 / max(rows, columns)
    x = (np.arange(columns, dtype=np.float32) * 2 - columns + 1)[None, :] * half
    y = (np.arange(rows, dtype=np.float32) * 2 - rows + 1)[:, None] * half
    cosine, sine = math.cos(view.rotation) / view.scale, math.sin(view.rotation) / view.scale
    return cosine * x + sine * y - view.shift_x, cosine * y - sine * x - view.shift_y


def _body(anatomy: Anatomy, x: Plane, y: Plane) -> Plane:
    """Depth of soft tissue: an elliptic thorax that widens into shoulders, with the neck between them."""
    trunk = anatomy.width * (0.86 + 0.1 * step((y - 0.35) * 6.0))
    width = trunk + 0.7 * step((-0.36 - y) * 8.0)
    neck = 0.55 * np.sqrt(np.maximum(0.0, 1.0 - (x / 0.26) ** 2)) * step((-0.66 - y) * 12.0)
    chest = np.sqrt(np.maximum(0.0, 1.0 - (x / width) ** 2)) * step((y + 0.9 - 0.3 * np.abs(x)) * 13.0)
    body: Plane = np.maximum(chest * (0.92 + 0.14 * y), neck)
    return body


def _air(anatomy: Anatomy, view: View, x: Plane, y: Plane) -> Plane:
    """Depth of both lungs: cut by diaphragm, mediastinum and heart, thinner at apex and edge."""
    side = np.abs(x)
    centre = 0.486 - 0.055 * (y + 0.6)
    outline = 1.0 - ((side - centre) / (anatomy.lung_width + 0.07 * y)) ** 2
    outline -= (np.abs(y + 0.02) / anatomy.lung_height) ** 3
    lung = np.sqrt(np.maximum(0.0, outline))
    # The right dome stands higher (liver); outwards it falls steeply into the costophrenic angle.
    dome = anatomy.diaphragm + view.breath - 0.03 * (1.0 - np.sign(x))
    dome = dome + (side - 0.36) ** 2 * (1.425 + 0.975 * np.sign(side - 0.36))
    lung *= step((dome - y) * 38.0) * step((side - 0.15 - 0.03 * np.cos(5.0 * y)) * 26.0)
    air: Plane = 0.92 * lung * (1.0 - 0.86 * _heart(anatomy, view, x, y))
    return air


def _heart(anatomy: Anatomy, view: View, x: Plane, y: Plane) -> Plane:
    """How much of the ray through the lungs is heart or aorta instead, 0 to 1."""
    size = anatomy.heart_size
    along, across = _turned(x - 0.1, y - anatomy.diaphragm - view.breath + 0.75 * size, anatomy.heart_tilt)
    heart = step((1.0 - (along / (1.2 * size)) ** 2 - (across / (0.86 * size)) ** 2) * 9.0)
    knob = step((1.0 - ((x - 0.13) / 0.085) ** 2 - ((y + 0.3) / 0.1) ** 2) * 5.0)
    covered: Plane = np.maximum(heart, 0.8 * knob)
    return covered


def _vessels(anatomy: Anatomy, x: Plane, y: Plane) -> Plane:
    """Hila, and vessels that leave them and thin out towards the lung's edge."""
    side, down = np.abs(x) - 0.19, y + 0.03
    radius = np.sqrt(side * side + down * down) + 1e-3
    angle = np.arctan2(down, side + 0.02) - 0.065 * (1.0 - np.sign(x))
    thickness = 0.012 + 0.016 * (0.5 - radius)
    density = np.zeros_like(radius)
    for number, bend in enumerate(anatomy.vessel_angles):
        course = -1.35 + 0.24 * number + bend + 0.5 * bend * radius
        density += np.maximum(0.0, 1.0 - ((angle - course) * radius / thickness) ** 2)
    fading = np.maximum(0.0, 1.0 - radius / 0.55) * np.minimum(1.0, radius / 0.12)
    vessels: Plane = 0.17 * fading * density + 0.3 * bump(radius / 0.1, radius / 0.13)
    return vessels


def _filled(anatomy: Anatomy, x: Plane, y: Plane, texture: Plane) -> Plane:
    """The share of each ray's air that is filled: blurred, patchy opacities, and small dense nodules."""
    filled = np.zeros_like(texture)
    patchy = np.clip(0.85 + 0.22 * texture, 0.0, 1.0)
    for spot in anatomy.opacities:
        along, across = _turned(x - spot.x, y - spot.y, spot.tilt)
        blob = bump(along / spot.radius_x, across / spot.radius_y)
        filled = 1.0 - (1.0 - filled) * (1.0 - spot.filling * blob * patchy)
    for at_x, at_y, radius in anatomy.nodules:
        filled = np.maximum(filled, 0.5 * bump((x - at_x) / radius, (y - at_y) / radius))
    return filled


def _breasts(anatomy: Anatomy, x: Plane, y: Plane) -> Plane:
    lower = 1.0 - ((np.abs(x) - 0.47) / 0.3) ** 2 - ((y - 0.3) / 0.3) ** 2
    depth: Plane = anatomy.breast * np.sqrt(np.maximum(0.0, lower))
    return depth


def _turned(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    """The coordinates along and across a direction."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x
