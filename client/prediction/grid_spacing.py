"""How large a point of a prepared image is, in millimetres."""

from client.file_facts import HeaderFacts
from shared_models.study import Image


def grid_spacing(facts: HeaderFacts, image: Image) -> tuple[float, ...] | None:
    """Return mm between neighbouring points along each axis of a prepared image.

    It is the study's, where the study names one; else the file's own, scaled as `client.preparation.fit` scales.

    Returns:
        None where the file does not say how large its pixels are.
    """
    if image.voxel is not None:
        return image.voxel
    if image.spacing is not None:
        return image.spacing, image.spacing
    if facts.spacing is None or not facts.rows or not facts.columns:
        return None
    size, pixel = (facts.rows, facts.columns), facts.spacing
    if image.orientation == "standard" and facts.transposed:
        size, pixel = size[::-1], pixel[::-1]
    return _fitted(size, pixel, image)


def _fitted(size: tuple[int, int], pixel: tuple[float, float], image: Image) -> tuple[float, float]:
    """Of a plane of this size, with pixels of this size."""
    (height, width), ratio = size, pixel[0] / pixel[1]
    tall = height * ratio
    wider = width * image.rows > tall * image.columns
    if image.aspect == "stretch":
        taken, made = (height, width), (image.rows, image.columns)
    elif image.aspect == "crop":
        rows = height if wider else max(1, min(height, round(width * image.rows / image.columns / ratio)))
        columns = max(1, min(width, round(tall * image.columns / image.rows))) if wider else width
        taken, made = (rows, columns), (image.rows, image.columns)
    else:
        rows = max(1, round(tall * image.columns / width)) if wider else image.rows
        columns = image.columns if wider else max(1, round(width * image.rows / tall))
        taken, made = (height, width), (rows, columns)
    return taken[0] * pixel[0] / made[0], taken[1] * pixel[1] / made[1]
