"""Hospitals with masks, and small studies that learn from them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from dicom_files import Hospital, dataset, make_image, make_study
from PIL import Image as Pillow

from client.site_file import Masks, SiteFile
from shared_models.study import Image, Model, Study

LESION = {"kind": "segmentation", "structures": [{"name": "lesion"}]}
ORGANS = {
    "kind": "segmentation",
    "structures": [{"name": "liver", "values": [1, 6]}, {"name": "tumour", "values": [2]}],
}


def mask_study(table: dict[str, object] = LESION, *, image: Image | None = None, **changes: object) -> Study:
    """A small study of segmentation without privacy."""
    image = image or make_image()
    architecture = "unet" if image.depth is None else "unet-3d"
    parts = {
        **make_study().model_dump(),
        "task": table,
        "image": image.model_dump(),
        "model": Model(architecture=architecture, width=8, levels=2).model_dump(),
    }
    return Study.model_validate({**parts, **changes})


def square(number: int, *, side: int = 6, value: int = 255, size: int = 16) -> npt.NDArray[np.uint8]:
    """A square in another place for each number."""
    inside = np.zeros((size, size), dtype=np.uint8)
    top, left = divmod(number * 3, size - side)
    inside[top % (size - side) : top % (size - side) + side, left : left + side] = value
    return inside


def png(path: Path, values: npt.NDArray[np.generic]) -> Path:
    """Write a grey PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(values).save(path)
    return path


class MaskedHospital(Hospital):
    """Images of lesions, brighter where a PNG of the same name says so; masks lie in a folder of their own."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.masks = root / "masks"
        self.masks.mkdir()

    def add_lesions(self, numbers: range) -> None:
        """One image and mask for each patient, and their labels file."""
        for number in numbers:
            random = np.random.default_rng(number)
            inside = square(number)
            pixels = (random.uniform(0, 60, (16, 16)) + 150 * (inside > 0)).astype(np.uint8)
            self.add(f"a/{number:04d}.dcm", dataset(pixels, patient=f"PAT-{number:04d}"))
            png(self.masks / "a" / f"{number:04d}.png", inside)
        self.label([(f"PAT-{number:04d}",) for number in numbers], header=("PatientID",))

    def site(self, **options) -> SiteFile:
        """The hospital's site file."""
        found = super().site(**{name: value for name, value in options.items() if name != "masks"})
        masks = options.get("masks", Masks(folder=self.masks))
        return found.model_copy(update={"masks": masks})
