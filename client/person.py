"""The person behind a Patient ID, as far as a header tells: read to be hashed, and kept as keyed hashes only.

Two Patient IDs may be one person, and one Patient ID two persons. Both matter, since a patient is what privacy is
promised to; and both can only be seen from what identifies the person.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydicom.dataset import FileDataset

from client.dicom_file import Unusable, text_of
from client.secret import SiteSecret

PERSON_KEYWORDS = ("PatientName", "PatientBirthDate", "PatientSex")

_NO_NAME = re.compile(
    r"(anon\w*|de-?ident\w*|unknown|unbekannt|no ?name|none|null|patient|name|test|removed|deleted|x+)\b.*",
    flags=re.IGNORECASE,
)
_NO_BIRTH = frozenset({"19000101", "00010101", "19700101", "11111111", "99991231"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Name, birth date and sex in one form; each empty where the header says nothing, or a placeholder."""

    name: str = field(default="", repr=False)
    birth: str = field(default="", repr=False)
    sex: str = ""

    @classmethod
    def of(cls, values: Mapping[str, str]) -> "Person":
        """The person whom these values, by DICOM keyword, name."""
        name, birth, sex = (values.get(keyword, "") for keyword in PERSON_KEYWORDS)
        return cls(name=_plain_name(name), birth=_plain_date(birth), sex=sex if sex in ("M", "F") else "")

    def pseudonyms(self, patient: str, secret: SiteSecret) -> dict[str, str]:
        """What may be remembered: keyed hashes, empty where there is nothing to tell.

        ``person`` is equal for equal names, birth dates and sexes, and only there where all three are; ``birth`` and
        ``sex`` can be compared within one Patient ID only.
        """
        whole = f"{self.name}|{self.birth}|{self.sex}" if self.name and self.birth and self.sex else ""
        return {
            "person": secret.pseudonym("person", whole) if whole else "",
            "birth": secret.pseudonym("birth", f"{patient}|{self.birth}") if patient and self.birth else "",
            "sex": secret.pseudonym("sex", f"{patient}|{self.sex}") if patient and self.sex else "",
        }


def person_values(header: FileDataset) -> dict[str, str]:
    """The values of `PERSON_KEYWORDS`; empty where one cannot be read, which is no reason against an image."""
    found = dict.fromkeys(PERSON_KEYWORDS, "")
    for keyword in PERSON_KEYWORDS:
        try:
            found[keyword] = text_of(header, keyword)[:1000]
        except Unusable:
            continue
    return found


def _plain_name(text: str) -> str:
    """Without case, order of words and punctuation: ``MÜLLER^Hans``, ``Müller, Hans`` and ``Hans Müller`` are one."""
    alphabetic = text.partition("=")[0]
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", alphabetic).casefold())
    if not words or _NO_NAME.fullmatch(" ".join(words)):
        return ""
    return " ".join(sorted(words))


def _plain_date(text: str) -> str:
    digits = re.sub(r"[.\-/ ]", "", text)
    return digits if re.fullmatch(r"\d{8}", digits) and digits not in _NO_BIRTH else ""
