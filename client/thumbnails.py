"""A few prepared images in small, so that somebody at the hospital sees whether they are what the study means."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from client.dicom_index import Index
from client.patients import PatientSet, images_by_role
from client.preparation import Plane
from client.roles import Role
from client.secret import SiteSecret

MAX_SIDE = 128
"""Pixels of the longer side: enough to tell a chest from a hand, and too few for most text to be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """One picture: the name of its class, its size, and a PNG as a data URI. Nothing says whose it is."""

    class_name: str
    width: int
    height: int
    uri: str = field(repr=False)


def thumbnails(
    index: Index, patients: Mapping[Role, PatientSet], secret: SiteSecret, *, per_class: int
) -> tuple[Thumbnail, ...]:
    """Return some images of each class, each of another patient.

    Guarantees: the same images each time, as long as they are used; which ones follows from a keyed hash. None whose
    header says that text in it identifies the patient.

    Args:
        index: of all images.
        patients: the prepared images, as they were gathered from that index.
        secret: of the site.
        per_class: how many at most.
    """
    if not per_class:
        return ()
    drawn = sorted(
        (
            (secret.uniform("thumbnail", f"{entry.patient}|{entry.path}"), role, position, entry)
            for role, entries in images_by_role(index).items()
            for position, entry in enumerate(entries)
            if not entry.burned_in
        ),
        key=lambda drawn: drawn[0],
    )
    found: list[Thumbnail] = []
    for (finding, label), name in index.class_names.items():
        shown: set[str] = set()
        for _, role, position, entry in drawn:
            if len(shown) == per_class:
                break
            if entry.values[finding] == label and entry.patient not in shown:
                shown.add(entry.patient)
                masks = patients[role].masks
                mask = None if masks is None else masks[position].numpy()
                found.append(_thumbnail(name, patients[role].images[position].numpy(), mask))
    return tuple(found)


def _thumbnail(class_name: str, plane: Plane, mask: Plane | None) -> Thumbnail:
    """Of an image, or of a slice of a volume: the middle one, or that with most of the mask. Its edge is red."""
    if plane.ndim == 4:
        marked = np.zeros(plane.shape[1]) if mask is None else (mask[0] > 0).sum(axis=(1, 2))
        number = int(marked.argmax()) if marked.any() else plane.shape[1] // 2
        plane, mask = plane[:, number], None if mask is None else mask[:, number]
    levels = np.round(plane * 255).astype(np.uint8)
    if mask is not None:
        levels = np.repeat(levels, 3, axis=0) if len(levels) == 1 else levels.copy()
        levels[:, _edge(mask[0])] = np.array([[255], [0], [0]])
    picture = Pillow.fromarray(levels[0] if len(levels) == 1 else np.moveaxis(levels, 0, -1))
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    stream = BytesIO()
    picture.save(stream, "PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
    return Thumbnail(class_name=class_name, width=picture.width, height=picture.height, uri=uri)


def _edge(mask: Plane) -> npt.NDArray[np.bool_]:
    """Pixels of a structure beside one of another, or of none."""
    padded = np.pad(mask, 1, mode="edge")
    beside = (padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1])
    differs = np.logical_or.reduce([mask != other for other in beside])
    edge: npt.NDArray[np.bool_] = (mask > 0) & differs
    return edge
