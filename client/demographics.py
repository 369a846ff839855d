"""Which subgroup a patient is in, as far as headers tell. It stays at the site; statistics of groups leave."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from pydicom.dataset import FileDataset

from client.dicom_file import Unusable, text_of
from client.person import Person
from shared_models.study import Evaluation
from shared_models.subgroups import OTHER, SEXES, UNKNOWN, Attribute, groups_of

AGE_KEYWORDS = ("PatientAge", "StudyDate")
MOST_YEARS = 90
"""Older patients count as of this age: there are few of them."""

_AGE = re.compile(r"(\d{3})([DWMY])")
_DAYS = {"D": 1.0, "W": 7.0, "M": 30.4375, "Y": 365.25}


@dataclass(frozen=True, slots=True, kw_only=True)
class Demographics:
    """What is known of a patient or an image; empty or None where nothing is.

    Attributes:
        sex: F, M or O.
        age: in years, at most `MOST_YEARS`.
        maker: of the scanner.
    """

    sex: str = ""
    age: int | None = None
    maker: str = ""

    @classmethod
    def of_patient(cls, images: Sequence["Demographics"]) -> "Demographics":
        """Of a patient with these images: at the youngest age, and unknown where they contradict each other."""
        sexes = {one.sex for one in images} - {""}
        makers = {one.maker for one in images} - {""}
        ages = [one.age for one in images if one.age is not None]
        return cls(
            sex=sexes.pop() if len(sexes) == 1 else "",
            age=min(ages, default=None),
            maker=makers.pop() if len(makers) == 1 else "",
        )

    def places(self, evaluation: Evaluation) -> tuple[int, ...]:
        """The number of the patient's group in each attribute that the study names."""
        names: dict[Attribute, str] = {
            "sex": SEXES.get(self.sex, UNKNOWN),
            "age": self._band(evaluation.age_bands),
            "vendor": self._vendor(evaluation.vendors),
        }
        return tuple(groups.index(names[attribute]) for attribute, groups in groups_of(evaluation).items())

    def _band(self, bands: Sequence[int]) -> str:
        if self.age is None or not bands:
            return UNKNOWN
        if self.age < bands[0]:
            return f"under {bands[0]}"
        for low, high in zip(bands, bands[1:], strict=False):
            if self.age < high:
                return f"{low} to {high - 1}"
        return f"{bands[-1]} and over"

    def _vendor(self, vendors: Sequence[str]) -> str:
        """The first that the maker's name begins with, as whole words, whatever the case."""
        if not self.maker or self.maker == "?":
            return UNKNOWN
        for vendor in vendors:
            if re.match(rf"{re.escape(vendor)}(?!\w)", self.maker, flags=re.IGNORECASE):
                return vendor
        return OTHER


def sex_of(values: Mapping[str, str]) -> str:
    """F, M or O of what `client.person.person_values` read; else empty."""
    sex = values.get("PatientSex", "")
    return sex if sex in SEXES else ""


def age_of(header: FileDataset, values: Mapping[str, str]) -> int | None:
    """Age in whole years: PatientAge (0010,1010), or else from birth date to StudyDate (0008,0020); None where neither.

    Args:
        header: with `AGE_KEYWORDS`.
        values: what `client.person.person_values` read; a placeholder is no birth date.
    """
    try:
        stated, day = (text_of(header, keyword) for keyword in AGE_KEYWORDS)
    except Unusable:
        return None
    if found := _AGE.fullmatch(stated):
        number, unit = int(found[1]), found[2]
        years = number if unit == "Y" else int(number * _DAYS[unit] / _DAYS["Y"])
    else:
        born, then = _day(Person.of(values).birth), _day(day)
        if born is None or then is None or then < born:
            return None
        years = then.year - born.year - ((then.month, then.day) < (born.month, born.day))
    return min(years, MOST_YEARS) if years <= 150 else None


def _day(text: str) -> date | None:
    """A date of value representation DA; PS3.5 section 6.2."""
    if not re.fullmatch(r"\d{8}", text):
        return None
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None
