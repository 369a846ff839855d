"""A hospital's X-ray machine: from optical depth to stored grey values.

Each scanner has a beam quality, a dose, scatter, sharpness, a grey curve and a way to store its pictures. That is
what differs between real hospitals, and what a model trained at one of them learns by heart.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from simulations.preparation.shading import Plane, blur


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """One machine.

    Args:
        name: manufacturer and model, made up.
        modality: ``DX`` or ``CR``.
        kvp: tube voltage in kV; more of it flattens the contrast between bone and soft tissue.
        photons: quanta per pixel of an unattenuated ray; fewer of them, more noise.
        scatter: scattered share of the mean signal, a veil over the picture.
        sharpness: standard deviation of the blur, in parts of the picture's longer side.
        gamma: grey curve; above 1 darkens the lungs.
        grid: rows and columns relative to the nominal image size.
        bits_stored: 8, 10 or 12.
        inverted: stored as MONOCHROME1.
        windowed: whether Window Center and Width are written (DX must, CR need not).
        transfer_syntax: how the file is encoded.
    """

    name: str
    modality: str
    kvp: float
    photons: float
    scatter: float
    sharpness: float
    gamma: float
    grid: tuple[float, float]
    bits_stored: int
    inverted: bool
    windowed: bool
    transfer_syntax: UID


SCANNERS = (
    Scanner(
        name="Lumen^Aurora 500", modality="DX", kvp=117.0, photons=4000.0, scatter=0.05, sharpness=0.002,
        gamma=1.0, grid=(1.0, 1.0), bits_stored=12, inverted=False, windowed=True,
        transfer_syntax=ExplicitVRLittleEndian,
    ),
    Scanner(
        name="Plattenwerk^CR 30", modality="CR", kvp=85.0, photons=700.0, scatter=0.35, sharpness=0.007,
        gamma=0.75, grid=(1.0, 0.82), bits_stored=10, inverted=True, windowed=False,
        transfer_syntax=ImplicitVRLittleEndian,
    ),
    Scanner(
        name="Helio^FlatPanel X", modality="DX", kvp=125.0, photons=1500.0, scatter=0.12, sharpness=0.003,
        gamma=1.35, grid=(1.25, 1.25), bits_stored=12, inverted=True, windowed=True,
        transfer_syntax=ExplicitVRLittleEndian,
    ),
    Scanner(
        name="Ostrava^Mobil 2", modality="DX", kvp=75.0, photons=450.0, scatter=0.5, sharpness=0.005,
        gamma=1.15, grid=(0.82, 1.0), bits_stored=10, inverted=False, windowed=True,
        transfer_syntax=RLELossless,
    ),
    Scanner(
        name="Kestrel^Digitizer", modality="CR", kvp=95.0, photons=1000.0, scatter=0.2, sharpness=0.009,
        gamma=0.85, grid=(0.75, 0.75), bits_stored=8, inverted=False, windowed=False,
        transfer_syntax=ExplicitVRLittleEndian,
    ),
    Scanner(
        name="Lumen^Aurora 300", modality="DX", kvp=105.0, photons=900.0, scatter=0.25, sharpness=0.004,
        gamma=1.5, grid=(1.0, 1.0), bits_stored=10, inverted=True, windowed=True,
        transfer_syntax=ImplicitVRLittleEndian,
    ),
)  # fmt: skip


def scanner_of(hospital: int, generator: np.random.Generator) -> Scanner:
    """The machine of hospital number *hospital*: one of the table, set up a little differently each time."""
    scanner = SCANNERS[hospital % len(SCANNERS)]
    return replace(
        scanner,
        kvp=round(scanner.kvp * float(generator.uniform(0.95, 1.05)), 1),
        photons=scanner.photons * float(generator.uniform(0.7, 1.4)),
        gamma=scanner.gamma * float(generator.uniform(0.9, 1.1)),
    )


def expose(scanner: Scanner, depth: Plane, generator: np.random.Generator) -> NDArray[np.uint16]:
    """Take the picture.

    Args:
        scanner: the machine.
        depth: optical depth of every ray, float32, shape (rows, columns).
        generator: draws the quantum noise.

    Returns:
        uint16, shape (rows, columns), 0 to ``2**bits_stored - 1``, larger is brighter (dense tissue is bright),
        whether or not the scanner stores it inverted.
    """
    signal = np.exp(-depth * (90.0 / scanner.kvp) ** 0.6)
    signal += 0.3 * scanner.scatter * blur(signal, 0.12 * max(depth.shape))
    signal = blur(signal, scanner.sharpness * max(depth.shape))
    noise = generator.standard_normal(depth.shape, dtype=np.float32)
    signal = np.maximum(signal + noise * np.sqrt(signal / scanner.photons), 1.0 / scanner.photons)
    grey = -np.log(signal)
    low, high = np.percentile(grey, (2.0, 99.0))
    curved = np.clip((grey - low) / max(high - low, 1e-6), 0.0, 1.0) ** scanner.gamma
    return np.asarray(np.round(curved * (2**scanner.bits_stored - 1)), dtype=np.uint16)
