"""What a model was not trained for: what an input is held against, and what an explicit override takes away of it.

The study's own checks, which left such images out of training, leave them out here: modality, number of channels and
frames, orientation, and the gates of ``[quality]``. What no override can mend (a file that is broken, a volume with a
missing slice) is in `REMEDIES` not.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from client.dicom_file import Unusable
from client.file_facts import HeaderFacts, PixelFacts
from client.file_reading import Header, Prepared
from client.preparation import Plane
from client.quality_file import SiteQuality
from client.quality_gate import QualityGate
from client.reading_pool import Reader
from client.reasons import Reason
from shared_models.quality import Quality
from shared_models.study import Image, Study

LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue in grey. Source: ITU-R BT.601."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an input has to be, and what was overridden so far.

    Attributes:
        image: how it is read; the study's, but for what was overridden.
        quality: likewise.
        allowed: reasons that may be overridden.
        overridden: those that were, with their sentences.
    """

    image: Image
    quality: Quality
    allowed: frozenset[Reason] = frozenset()
    overridden: Mapping[Reason, str] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study, allowed: Collection[Reason] = ()) -> "Terms":
        """The study's, with what may be overridden."""
        return cls(image=study.image, quality=study.quality, allowed=frozenset(allowed))

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was overridden, for outputs."""
        return tuple(f"{reason.code}: {sentence}" for reason, sentence in self.overridden.items())

    def check_header(self, header: Header) -> None:
        """Raise Unusable for what speaks against a file before its pixels are read."""
        if header.finding is not None:
            raise header.finding
        self._gate.check_header(header.facts)

    def check_pixels(self, facts: PixelFacts) -> None:
        """Raise Unusable for what its pixels say against an image."""
        self._gate.check_pixels(facts)

    def without(self, found: Unusable, facts: HeaderFacts) -> "Terms":
        """The same without what was found. Raises it where it may not, or cannot, be overridden."""
        reason = found.reason
        if reason not in self.allowed or reason in self.overridden:
            raise found
        image, quality = (
            (REMEDIES[reason](self.image, facts), self.quality)
            if reason in REMEDIES
            else (self.image, self.quality.model_copy(update=dict(_GATES[reason])))
        )
        if image is None:
            raise found
        return replace(self, image=image, quality=quality, overridden={**self.overridden, reason: str(found)})

    def joined(self, other: "Terms") -> "Terms":
        """What is left of both, for files of one series."""
        modalities = tuple(dict.fromkeys((*self.image.modalities, *other.image.modalities)))
        gates = {reason: dict(_GATES[reason]) for reason in other.overridden if reason in _GATES}
        taken = {key: value for gate in gates.values() for key, value in gate.items()}
        return replace(
            self,
            image=self.image.model_copy(update={"modalities": modalities}),
            quality=self.quality.model_copy(update=taken),
            overridden={**self.overridden, **other.overridden},
        )

    @property
    def _gate(self) -> QualityGate:
        return QualityGate(study=self.quality, site=SiteQuality())


Relaxed: TypeAlias = Callable[[Image, HeaderFacts], Image | None]
"""How an image is read that the study would not have; None where it cannot be."""


def _other_modality(image: Image, facts: HeaderFacts) -> Image | None:
    """Only CT has Hounsfield units."""
    if image.intensity == "hounsfield":
        return None
    return image.model_copy(update={"modalities": (*image.modalities, facts.modality)})


def _other_channels(image: Image, facts: HeaderFacts) -> Image | None:
    """Colour is read as colour, and made grey then; and the reverse."""
    if image.intensity == "hounsfield" or image.depth is not None:
        return None
    return image.model_copy(update={"channels": 4 - image.channels})


def _several_frames(image: Image, facts: HeaderFacts) -> Image | None:
    return image.model_copy(update={"frames": "middle"})


def _as_stored(image: Image, facts: HeaderFacts) -> Image | None:
    return image.model_copy(update={"orientation": "as-stored"})


REMEDIES: Mapping[Reason, Relaxed] = MappingProxyType(
    {
        Reason.OTHER_MODALITY: _other_modality,
        Reason.CHANNEL_MISMATCH: _other_channels,
        Reason.MULTI_FRAME: _several_frames,
        Reason.ORIENTATION: _as_stored,
    }
)
_GATES: Mapping[Reason, tuple[tuple[str, object], ...]] = MappingProxyType(
    {
        Reason.OTHER_VIEW: (("views", ()),),
        Reason.OTHER_BODY_PART: (("body_parts", ()),),
        Reason.OTHER_PHOTOMETRIC: (("photometric", ()),),
        Reason.WRONG_SIZE: (
            ("min_rows", 1),
            ("min_columns", 1),
            ("max_rows", 65535),
            ("max_columns", 65535),
        ),
        Reason.BURNED_IN: (("burned_in", "use"),),
        Reason.BLANK: (("blank", "use"),),
        Reason.SATURATED: (("max_saturated_share", None),),
    }
)
OVERRIDABLE: tuple[Reason, ...] = (*REMEDIES, *_GATES)
"""In the order in which they are told."""


def examined(reader: Reader, path: Path, terms: Terms) -> tuple[Header, Terms]:
    """Read the header of a file, as often as overrides ask for it.

    Returns:
        What it says, and the terms under which nothing speaks against it.

    Raises:
        Unusable: something does.
    """
    while True:
        header = reader.header(path, terms.image)
        try:
            terms.check_header(header)
        except Unusable as found:
            terms = terms.without(found, header.facts)
            continue
        return header, terms


def prepared(reader: Reader, path: Path, facts: HeaderFacts, terms: Terms) -> tuple[Prepared, Terms]:
    """Decode and prepare a plane image; as `examined`."""
    while True:
        try:
            made = reader.prepare(path, terms.image)
            terms.check_pixels(made.facts)
        except Unusable as found:
            terms = terms.without(found, facts)
            continue
        return made, terms


def with_channels(plane: Plane, channels: int) -> Plane:
    """The same image with the model's number of channels: grey of colour by `LUMA`, or grey three times."""
    if len(plane) == channels:
        return plane
    if channels == 1:
        grey = np.tensordot(np.array(LUMA), plane.astype(np.float64), axes=1)[np.newaxis]
        return np.clip(grey, 0.0, 1.0).astype(np.float32)
    return np.repeat(plane, channels, axis=0)
