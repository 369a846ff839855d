"""``[quality]`` of ``site.toml``: how careful this hospital is with its files. Nobody else sees it."""

from typing import Literal

from pydantic import Field

from shared_models.configuration import Frozen


class SiteQuality(Frozen):
    """What the hospital itself asks of its files, beside the study.

    ``patient_conflicts``: whether images are left out whose Patient ID has contradictory birth dates or sexes, or whose
    patient seems to have another Patient ID as well; ``tell`` counts them only. ``identifiers``: whether files that
    still hold what can identify somebody are left out. ``thumbnails``: images of each class on the report's page.
    """

    patient_conflicts: Literal["tell", "refuse"] = "tell"
    identifiers: Literal["tell", "refuse"] = "tell"
    thumbnails: int = Field(default=4, ge=0, le=24)
