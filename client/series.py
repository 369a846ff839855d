"""The files of one DICOM series as a volume: one image each, or the frames of one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import FileDataset
from pydicom.tag import BaseTag

from client.dicom_file import (
    FRAME_KEYWORDS,
    MAX_INFLATED_BYTES,
    Unusable,
    guarded,
    integer_of,
    opened,
    read_header,
    text_of,
)
from client.dicom_image import check_image, decode, with_pixels
from client.file_facts import pixel_facts
from client.file_reading import Prepared
from client.frames import num_frames, take_frame
from client.intensity import (
    Window,
    hounsfield_units,
    lookup_table,
    modality_values,
)
from client.masks import volume_mask
from client.pixel_size import spacing_of
from client.reasons import Reason
from client.structures import MaskWanted, present, with_mask
from client.volume import Slice, Volume, Voxels, resampled, stacked
from shared_models.study import Image

MAX_VOLUME_BYTES = 2**30
"""Of all slices of a series, as float32."""
_PIXELS = 0x7FE0
"""Group of the pixel data."""


def prepare_series(paths: Sequence[Path], image: Image, mask: MaskWanted | None = None) -> Prepared:
    """Turn the files of one series into the volume that enters the model.

    Guarantees: depends on these files and the study alone, not on the order or the names of the files.

    Args:
        paths: of all files of the series, in any order.
        image: what the study wants; it has a depth.
        mask: that of the series, where one is wanted.

    Returns:
        float32 of ``image.shape`` in [0, 1]; what lies outside all slices is 0. The mask is one more channel.

    Raises:
        Unusable: as `read_series`.
    """
    if image.depth is None or image.spacing is None or image.slice_spacing is None:
        raise ValueError("the study's images are no volumes")
    instances = list[str]()
    volume = read_series(paths, image, instances.append)
    facts = pixel_facts(volume.values)
    levels = prepared_volume(
        volume,
        image,
        spacing=(image.slice_spacing, image.spacing, image.spacing),
        shape=(image.depth, image.rows, image.columns),
    )
    plane = levels[np.newaxis]
    if mask is not None:
        classes = np.zeros(image.shape, dtype=np.uint8)
        if mask.path is not None:
            classes = volume_mask(mask.path, volume, image, instances=instances, structures=mask.structures)
        plane = with_mask(plane, classes)
        facts = facts.model_copy(update={"present": present(classes, mask.structures)})
    return Prepared(plane=plane, has_window=True, facts=facts)


def read_series(
    paths: Sequence[Path], image: Image, note: Callable[[str], None] = lambda instance: None
) -> Volume:
    """Read the files of one series, in whatever order.

    Args:
        paths: at least one.
        image: what the study wants. With ``intensity = "hounsfield"`` values are Hounsfield units, else those after the
            modality transformation.
        note: gets the SOPInstanceUID of each file.

    Raises:
        Unusable: a file cannot be used, they are of several series, or they make no volume.
    """
    slices: list[Slice] = []
    series, room = None, MAX_VOLUME_BYTES
    for number, path in enumerate(paths, start=1):
        with _of_many(number, len(paths)):
            header = _read(path, image)
            if series not in (None, own := text_of(header, "SeriesInstanceUID")):
                raise Unusable(Reason.NO_VOLUME, "Its files are of several series.")
            series = own
            note(text_of(header, "SOPInstanceUID"))
            rows, columns = (
                integer_of(header, keyword, low=1, high=65535) for keyword in ("Rows", "Columns")
            )
            room -= 4 * rows * columns * num_frames(header)
            if room < 0:
                raise Unusable(Reason.TOO_LARGE, f"Its series has more than {MAX_VOLUME_BYTES} bytes.")
            slices += _slices(header, image)
    return stacked(slices)


@contextmanager
def _of_many(number: int, num_files: int) -> Iterator[None]:
    """Say in which file of the series something is wrong."""
    try:
        yield
    except Unusable as found:
        if num_files == 1:
            raise
        where = f"(file {number} of the {num_files} of its series, by path)"
        raise Unusable(found.reason, f"{found.detail} {where}".lstrip()) from None


def prepared_volume(
    volume: Volume, image: Image, *, spacing: tuple[float, float, float], shape: tuple[int, int, int]
) -> Voxels:
    """Return the middle of a volume on the study's grid, in levels from 0 to 1; around it 0.

    Percentiles are those of the whole volume.

    Args:
        volume: of `read_series`.
        image: ``intensity`` is "hounsfield" or "percentiles": windows and ranges differ from slice to slice.
        spacing: mm towards the head, to the back, to the left.
        shape: of the grid, in the same order.

    Returns:
        float32 of *shape* in [0, 1].

    Raises:
        ValueError: another intensity.
    """
    if image.window_center is not None and image.window_width is not None:
        window = Window(center=image.window_center, width=image.window_width)
        placed = resampled(volume, spacing=spacing, shape=shape, outside=np.nan)
        levels = window.apply(placed.astype(np.float64))
    elif image.intensity == "percentiles":
        low, high = np.percentile(volume.values, [image.low_percentile, image.high_percentile])
        whole = replace(volume, values=_between(volume.values, float(low), float(high)))
        levels = resampled(whole, spacing=spacing, shape=shape, outside=np.nan).astype(np.float64)
    else:
        raise ValueError(f'intensity = "{image.intensity}" has no meaning for a volume')
    return np.nan_to_num(levels, nan=0.0).astype(np.float32)


def _between(values: Voxels, low: float, high: float) -> Voxels:
    """What lies between the two, as 0 to 1, cut outside; slice by slice, since there may be a gigabyte of it."""
    levels = np.zeros_like(values)
    if high > low:
        for place, one in enumerate(values):
            levels[place] = np.clip((one.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    return levels


def _read(path: Path, image: Image) -> FileDataset:
    frames = image.model_copy(update={"frames": "middle"})  # any number of frames will do
    with opened(path, max_inflated=MAX_INFLATED_BYTES) as file:
        header = read_header(file, with_frames=True)
        check_image(header, file, frames)
        return with_pixels(header, file)


def _slices(dataset: FileDataset, image: Image) -> Iterator[Slice]:
    with guarded(Reason.BAD_ATTRIBUTE):
        for keyword in FRAME_KEYWORDS:
            dataset.get(keyword)  # parsed here once; else anew for each frame
    for frame in range(num_frames(dataset)):
        own = _header_of(dataset, frame)
        stored = decode(dataset, frame)
        table = lookup_table(own, "ModalityLUTSequence")
        values = (
            hounsfield_units(stored, own)
            if image.intensity == "hounsfield"
            else modality_values(stored, own, table)
        )
        if image.intensity == "percentiles" and text_of(own, "PhotometricInterpretation") == "MONOCHROME1":
            values = -values
        if not np.isfinite(values).all():
            raise Unusable(Reason.UNSUPPORTED_PIXELS, "It holds values that are no numbers.")
        yield placed(own, values.astype(np.float32))


def _header_of(dataset: FileDataset, frame: int) -> FileDataset:
    """The attributes of one frame, as of an image of one frame, without pixels."""
    tags = [tag for tag in list(dataset.keys()) if tag.group != _PIXELS]
    elements: dict[BaseTag, DataElement | RawDataElement] = {tag: dataset.get_item(tag) for tag in tags}
    own = FileDataset("", elements, file_meta=dataset.file_meta)
    own.set_original_encoding(*dataset.original_encoding)
    take_frame(own, frame)
    return own


def placed(header: FileDataset, values: npt.NDArray[np.float32]) -> Slice:
    """The slice of these values, where its header says that it lies. Raises Unusable where it does not say it."""
    if (spacing := spacing_of(header)) is None:
        raise Unusable(Reason.NO_SPACING)
    across, down = _vector(header, "ImageOrientationPatient", 6).reshape(2, 3)
    return Slice(
        values=values,
        position=_vector(header, "ImagePositionPatient", 3),
        across=across,
        down=down,
        spacing=spacing,
    )


def _vector(header: FileDataset, keyword: str, size: int) -> npt.NDArray[np.float64]:
    with guarded(Reason.NO_VOLUME):
        found = np.array([float(value) for value in header.get(keyword) or ()])
    if found.shape != (size,) or not np.isfinite(found).all():
        raise Unusable(Reason.NO_VOLUME, f"{keyword} is missing or has no {size} numbers.")
    return found
