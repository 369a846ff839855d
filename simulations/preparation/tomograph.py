"""A hospital's CT scanner: how its slices lie, how far apart they are, how noisy, and how they are stored."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

Millimetres = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tomograph:
    """One machine.

    Args:
        name: manufacturer and model, made up.
        kvp: tube voltage in kV.
        noise: standard deviation of a voxel in Hounsfield units.
        slice_spacings: mm from slice to slice, of its two protocols.
        tilt: degrees by which the gantry leans; the table moves on along the patient, so that the stack is sheared.
        turn: degrees by which the whole stack is turned, slices and direction: a reformatted, oblique series.
        head_first: whether the first slice is the one nearest to the head.
        shuffled: whether the names of the files are in no order.
        signed: stored as signed numbers, without an offset.
        transfer_syntax: how the file is encoded.
    """

    name: str
    kvp: float
    noise: float
    slice_spacings: tuple[float, float]
    tilt: float = 0.0
    turn: float = 0.0
    head_first: bool = False
    shuffled: bool = False
    signed: bool = False
    transfer_syntax: UID = ExplicitVRLittleEndian

    def directions(self) -> tuple[Millimetres, Millimetres, Millimetres]:
        """Unit vectors in which columns, rows and slices count up: x to the left, y to the back, z to the head."""
        tilt, turn = math.radians(self.tilt + self.turn), math.radians(self.turn)
        across = np.array([math.cos(turn), math.sin(turn), 0.0])
        level = np.array([-math.sin(turn), math.cos(turn), 0.0])
        down = math.cos(tilt) * level + math.sin(tilt) * np.array([0.0, 0.0, 1.0])
        onwards = np.cross(across, down) if self.turn else np.array([0.0, 0.0, 1.0])
        return across, down, -onwards if self.head_first else onwards


TOMOGRAPHS = (
    Tomograph(name="Lumen^Spiral 16", kvp=120.0, noise=20.0, slice_spacings=(12.5, 20.0)),
    Tomograph(
        name="Ostrava^Gantry T", kvp=110.0, noise=35.0, slice_spacings=(12.5, 16.0), tilt=12.0, shuffled=True,
        signed=True, transfer_syntax=ImplicitVRLittleEndian,
    ),
    Tomograph(
        name="Helio^Volume X", kvp=100.0, noise=30.0, slice_spacings=(10.0, 16.0), turn=10.0, head_first=True,
        transfer_syntax=RLELossless,
    ),
    Tomograph(
        name="Plattenwerk^CT 4", kvp=130.0, noise=45.0, slice_spacings=(16.0, 20.0), head_first=True, shuffled=True,
    ),
)  # fmt: skip
