"""One form for an identifier, wherever it comes from: a DICOM file, the labels file, or a person at the keyboard."""

import unicodedata
from collections.abc import Mapping
from types import MappingProxyType

PSEUDONYM_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "PatientID": "patient",
        "StudyInstanceUID": "study",
        "AccessionNumber": "accession",
        "SOPInstanceUID": "instance",
        "SeriesInstanceUID": "series",
    }
)
"""The kind of pseudonym (`client.secret.SiteSecret.pseudonym`) that stands for each identifying attribute."""


def normalised(identifier: str) -> str:
    """Without padding (white space of any kind, and NUL, which DICOM pads with), composed as Unicode's NFC."""
    return unicodedata.normalize("NFC", identifier).strip().strip("\0").strip()
