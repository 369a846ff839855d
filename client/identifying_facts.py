"""How much of a header could identify somebody, in numbers: never what it says."""

from typing import Annotated

from pydantic import Field

from shared_models.configuration import Frozen

Number = Annotated[int, Field(ge=0, le=2**31)]


class IdentifyingFacts(Frozen):
    """Of the attributes that the Basic Profile of PS3.15 annex E removes or replaces, those that hold a value, by kind.

    `client.basic_profile` says what belongs to which kind. ``to_remove``: of all of them, those for which
    the profile allows no replacement. ``removed``: Patient Identity Removed (0012,0062) says YES. ``complete``: the
    header was looked through to its end.
    """

    patient: Number = 0
    identifiers: Number = 0
    dates: Number = 0
    people: Number = 0
    devices: Number = 0
    texts: Number = 0
    private: Number = 0
    graphics: Number = 0
    to_remove: Number = 0
    removed: bool = False
    complete: bool = True

    @property
    def why_not_deidentified(self) -> str:
        """Why the file does not count as de-identified, in numbers; empty where it does."""
        if not self.removed:
            return "Patient Identity Removed (0012,0062) is not YES."
        if not self.complete:
            return "Its header could not be looked through."
        if self.to_remove:
            return f"{self.to_remove} attributes hold values that the Basic Profile removes."
        return ""
