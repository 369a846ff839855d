"""Series and instance numbers of results: one series of each kind in each study, for one call.

UIDs are random: two calls are two observations at two times, and an object with other contents may not have the same
UID. Who stores again stores the same files, which a PACS has already.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import TypedDict

from pydicom.uid import UID

from client.prediction.dicom_results.model_identity import ModelIdentity, new_uid


class Kind(Enum):
    """A kind of result: its word, its series number and what its series is called."""

    REPORT = ("report", 9701, "report")
    SEGMENTATION = ("segmentation", 9702, "segmentation")
    PICTURE = ("picture", 9703, "picture")

    def __init__(self, word: str, series_number: int, description: str) -> None:
        self.word = word
        self.series_number = series_number
        self.description = description


class PlaceArguments(TypedDict):
    """What highdicom's constructors call it."""

    series_instance_uid: UID
    series_number: int
    series_description: str
    sop_instance_uid: UID
    instance_number: int
    specific_character_set: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in its study a result stands."""

    series: UID = field(repr=False)
    series_number: int
    series_description: str
    instance: UID = field(repr=False)
    instance_number: int

    @property
    def arguments(self) -> PlaceArguments:
        """For a constructor of highdicom."""
        return {
            "series_instance_uid": self.series,
            "series_number": self.series_number,
            "series_description": self.series_description,
            "sop_instance_uid": self.instance,
            "instance_number": self.instance_number,
            "specific_character_set": "ISO_IR 192",
        }


class Numbering:
    """Gives each result of one call its place."""

    def __init__(self, identity: ModelIdentity) -> None:
        self._identity = identity
        self._series: dict[tuple[str, Kind], UID] = {}
        self._numbers: Counter[UID] = Counter()

    def place(self, study: str, kind: Kind) -> Place:
        """The next place in a study's series of this kind."""
        series = self._series.setdefault((study, kind), new_uid())
        self._numbers[series] += 1
        return Place(
            series=series,
            series_number=kind.series_number,
            series_description=self._identity.series_description(kind.description),
            instance=new_uid(),
            instance_number=self._numbers[series],
        )
