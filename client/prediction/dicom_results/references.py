"""Source images as highdicom takes them, and references to them as they have to be.

highdicom copies patient and study by the tables of the source's own SOP class, and knows some classes not at all; it
takes one frame only as an image of one frame. So it is given each source as a Secondary Capture of one frame, and what
it then writes of classes and frames is put right.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID, SecondaryCaptureImageStorage

from client.dicom_file import Unusable
from client.prediction.dicom_results.source_images import SourceImage
from client.reasons import Reason

STAND_IN = UID(SecondaryCaptureImageStorage)
_PLACE = ("PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sources:
    """The files of one reading, in their order, and which frame of the only one was taken, from 0."""

    images: tuple[SourceImage, ...] = field(repr=False)
    frame: int | None = None

    @property
    def first(self) -> FileDataset:
        """Whose patient and study the results are of."""
        return self.images[0].header

    @property
    def frame_numbers(self) -> list[int] | None:
        """As DICOM counts, from 1."""
        return None if self.frame is None else [self.frame + 1]

    def stand_ins(self) -> list[FileDataset]:
        """Each file as an image of one frame of a class that highdicom knows."""
        made = []
        for one in self.images:
            header = one.frame(self.frame or 0)
            header.SOPClassUID = STAND_IN
            if not all(header.get(keyword) for keyword in _PLACE) and "FrameOfReferenceUID" in header:
                del header.FrameOfReferenceUID  # without these it says nothing that highdicom could take
            made.append(header)
        return made

    def put_right(self, made: Dataset) -> None:
        """Give references to these files in a result their classes, and those to pixels their frame."""
        classes = {one.instance: one.sop_class for one in self.images}
        _put_right(made, classes, self.frame_numbers)

    def references(self) -> list[Dataset]:
        """One for each file: SOP class, instance, and the frame where there is one."""
        found = []
        for one in self.images:
            reference = Dataset()
            reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = one.sop_class, one.instance
            if self.frame_numbers is not None:
                reference.ReferencedFrameNumber = self.frame_numbers
            found.append(reference)
        return found


@contextmanager
def describing() -> Iterator[None]:
    """Let highdicom make an object: its warnings, which quote values of the source, are dropped, and so are its errors.

    Raises:
        Unusable: it takes the source's attributes for none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Unusable(Reason.BAD_ATTRIBUTE, f"({type(error).__name__})") from None


def same_study(sources: Sequence[SourceImage]) -> bool:
    """Whether all are of one study and one series."""
    return len({(one.header.StudyInstanceUID, one.header.SeriesInstanceUID) for one in sources}) == 1


def _put_right(made: Dataset, classes: dict[UID, UID], frames: list[int] | None) -> None:
    for element in made:
        if element.VR != "SQ":
            continue
        for item in element.value:
            instance = item.get("ReferencedSOPInstanceUID")
            if instance in classes:
                item.ReferencedSOPClassUID = classes[instance]
                if frames is not None and element.keyword == "SourceImageSequence":
                    item.ReferencedFrameNumber = frames
            _put_right(item, classes, frames)
