"""How large the pixels of an image are, and whether they are square, as its header says it."""

from pydicom.dataset import FileDataset
from pydicom.multival import MultiValue

from client.dicom_file import Unusable, guarded
from client.reasons import Reason

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def spacing_of(dataset: FileDataset) -> tuple[float, float] | None:
    """Distance in mm between rows and between columns, None where the header does not say it.

    Pixel Spacing (0028,0030) goes before Imager Pixel Spacing (0018,1164), which is that at the detector, and this
    before Nominal Scanned Pixel Spacing (0018,2010).

    Raises:
        Unusable: it is no spacing.

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
        Unusable: the header gives no possible value.

    Source:
        DICOM PS3.3 section C.7.6.3.1.7 (vertical over horizontal).
    """
    found = spacing_of(dataset) or _pair(dataset, "PixelAspectRatio") or (1.0, 1.0)
    return found[0] / found[1]


def _pair(dataset: FileDataset, keyword: str) -> tuple[float, float] | None:
    with guarded(Reason.BAD_ATTRIBUTE):
        values = dataset.get(keyword)
        if values is None or values == "" or (isinstance(values, MultiValue) and not values):
            return None
        first, second = (float(value) for value in values)
    if not (1e-6 <= first <= 1e6 and 1e-6 <= second <= 1e6):
        raise Unusable(Reason.BAD_ATTRIBUTE, f"{keyword} has no two possible sizes.")
    return first, second
