"""One frame of a multi-frame image: which one, and what the functional groups say of it."""

from pydicom.dataset import Dataset, FileDataset

from client.dicom_file import FRAME_KEYWORDS, Unusable, guarded, integer_of
from client.reasons import Reason
from shared_models.study import Image

# fmt: off
_MACROS = {
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "CTImageFrameTypeSequence": ("FrameType",),
}
# fmt: on
"""The macros that we use: (0028,9145), (0028,9132), (0028,9110), (0020,9116), (0020,9113), (0018,9329)."""


def num_frames(header: FileDataset) -> int:
    """Number of Frames (0028,0008), 1 where it is missing, empty or 0. Raises Unusable."""
    return max(1, integer_of(header, "NumberOfFrames", low=0, high=2**31, default=1))


def chosen_frame(header: FileDataset, image: Image) -> int:
    """The frame that the study takes, from 0. Of an even number, *middle* is the earlier one of the two.

    A study of volumes takes all of them, whatever this says.

    Raises:
        Unusable: several frames where the study takes images of one.
    """
    number = num_frames(header)
    if number > 1 and image.frames == "refuse" and image.depth is None:
        raise Unusable(Reason.MULTI_FRAME, f"{number} frames.")
    return (number - 1) // 2


def take_frame(header: FileDataset, frame: int) -> None:
    """Put what the functional groups say of a frame where images of one frame have it, and drop the groups.

    What they say goes before what stands there already.

    Raises:
        Unusable: the groups cannot be parsed.

    Source:
        DICOM PS3.3 sections C.7.6.16.1 (shared and per-frame groups) and C.7.6.16.2.
    """
    shared, each = FRAME_KEYWORDS
    with guarded(Reason.BAD_ATTRIBUTE):
        for keyword, position in ((shared, 0), (each, frame)):
            groups = header.get(keyword) or []
            if position < len(groups):
                _copy_macros(groups[position], header)
    for keyword in FRAME_KEYWORDS:
        if keyword in header:
            del header[keyword]


def _copy_macros(groups: Dataset, header: FileDataset) -> None:
    for sequence, keywords in _MACROS.items():
        for keyword in keywords:
            items = groups.get(sequence)
            if items and keyword in items[0]:
                setattr(header, "ImageType" if keyword == "FrameType" else keyword, items[0][keyword].value)
