"""How large the pixels of an image are, and whether they are square, as its header says it."""

from pydicom.dataset import FileDataset

from client.dicom_file import Unusable, guarded
from client.reasons import Reason

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_MOST = 16.0


def spacing_of(dataset: FileDataset) -> tuple[float, float] | None:
    """Distance in mm between rows and between columns, None where the header does not say it, or says zero.

    Pixel Spacing (0028,0030) goes before Imager Pixel Spacing (0018,1164), which is that at the detector, and this
    before Nominal Scanned Pixel Spacing (0018,2010).

    Source:
        DICOM PS3.3 section 10.7.1.
    """
    for keyword in _SPACINGS:
        if (found := _pair(dataset, keyword)) is not None:
            return found
    return None


def height_over_width(dataset: FileDataset) -> float:
    """Height of a pixel over its width: from the spacing, else from Pixel Aspect Ratio (0028,0034), else 1.

    Raises:
        Unusable: pixels that are many times as long as wide, which no device makes.

    Source:
        DICOM PS3.3 section C.7.6.3.1.7 (vertical over horizontal).
    """
    found = spacing_of(dataset) or _pair(dataset, "PixelAspectRatio") or (1.0, 1.0)
    ratio = found[0] / found[1]
    if not 1.0 / _MOST <= ratio <= _MOST:
        raise Unusable(Reason.BAD_ATTRIBUTE, f"Its pixels are {ratio:g} times as high as wide.")
    return ratio


def _pair(dataset: FileDataset, keyword: str) -> tuple[float, float] | None:
    """Two sizes; None where they are missing or none: a whole image is not refused for a blank in its header."""
    try:
        with guarded(Reason.BAD_ATTRIBUTE):
            first, second = (float(value) for value in dataset.get(keyword) or ())
    except Unusable:
        return None
    return (first, second) if 1e-6 <= first <= 1e6 and 1e-6 <= second <= 1e6 else None
