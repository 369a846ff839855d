"""Coded concepts of results: the standard's where it has one, else our own of the scheme ``99COLLEGIUM``.

The value of a code of our own follows from its meaning alone, so that the same finding has the same code everywhere.

Source: DICOM PS3.16 (templates and context groups), PS3.3 section 8 (private coding schemes begin with 99).
"""

import hashlib

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept

SCHEME = "99COLLEGIUM"
_LONGEST = 64
"""Characters of a Code Meaning."""


def scheme_items() -> list[CodingSchemeIdentificationItem]:
    """What Coding Scheme Identification Sequence (0008,0110) says of our scheme."""
    return [
        CodingSchemeIdentificationItem(
            SCHEME,
            name="Collegium: findings and operating points of studies",
            responsible_organization="Collegium",
        )
    ]


def own(meaning: str) -> CodedConcept:
    """A concept of our own: a finding, a structure, an operating point."""
    shown = meaning if len(meaning) <= _LONGEST else f"{meaning[: _LONGEST - 1]}…"
    digest = hashlib.sha256(meaning.encode()).hexdigest()
    return CodedConcept(digest[:12].upper(), SCHEME, shown)


def _standard(value: str, scheme: str, meaning: str) -> CodedConcept:
    return CodedConcept(value, scheme, meaning)


PROBABILITY = _standard("122157", "DCM", "Probability")
THRESHOLD = _standard("122411", "DCM", "Threshold Value")
COMMENT = _standard("121106", "DCM", "Comment")
ARTIFICIAL_INTELLIGENCE = _standard("123110", "DCM", "Artificial Intelligence")
SEGMENTATION = _standard("113076", "DCM", "Segmentation")
SOURCE_IMAGE = _standard("121322", "DCM", "Source image for image processing operation")
PROCEDURE = _standard("363679005", "SCT", "Imaging procedure")
POSITIVE = _standard("10828004", "SCT", "Positive")
NEGATIVE = _standard("260385009", "SCT", "Negative")
STANDARD_DEVIATION = _standard("386136009", "SCT", "Standard Deviation")
LOWEST = _standard("255605001", "SCT", "Minimum")
HIGHEST = _standard("56851009", "SCT", "Maximum")
NEUTRAL_CATEGORY = _standard("309825002", "SCT", "Spatial and Relational Concept")
"""Of segments: whether a structure is anatomical or a lesion, the study does not say in codes."""
NO_UNITS = _standard("1", "UCUM", "no units")
ENGLISH = _standard("en", "RFC5646", "English")
INTENDED_USE = own("Intended use")
OVERRIDE = own("Refusal that was overridden")
TEST_STATEMENT = own("What the test showed of such a score")
