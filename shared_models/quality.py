"""``[quality]`` of a study: which images are good enough, and below what a hospital takes no part.

Public, as the whole study is: nothing here says what a hospital has. The hospital's own share stands in its
``site.toml`` (`client.quality_file`).
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shared_models.configuration import Frozen

Codes = Annotated[
    tuple[Annotated[str, Field(pattern=r"^([A-Z0-9_]{1,16}|PALETTE COLOR)$")], ...],
    Field(max_length=50, strict=False),
]
Pixels = Annotated[int, Field(ge=1, le=65535)]


class Quality(Frozen):
    """What a study asks of images beyond being readable. Without it all but blank and identifying images are used.

    ``views``, ``body_parts`` and ``photometric`` are codes of ViewPosition (0018,5101), BodyPartExamined (0018,0015)
    and PhotometricInterpretation (0028,0004); none: any. ``unstated``: what becomes of an image that says nothing
    where views or body parts are named. Rows and columns are those of the stored image. ``max_saturated_share``: of
    the samples, those that have the image's own lowest or its own highest value, whichever are more.

    ``burned_in``: what becomes of images by Burned In Annotation (0028,0301); ``refuse`` leaves out those that say
    YES, ``require-no`` all that do not say NO. ``shared_pixels``: of images whose pixels stand under several Patient
    IDs. A hospital does not train with fewer training patients of any class than ``min_patients_per_class``, nor with
    a larger share of its files left out than ``max_unusable_share``.
    """

    views: Codes = ()
    body_parts: Codes = ()
    photometric: Codes = ()
    unstated: Literal["use", "refuse"] = "use"
    min_rows: Pixels = 1
    min_columns: Pixels = 1
    max_rows: Pixels = 65535
    max_columns: Pixels = 65535
    blank: Literal["refuse", "use"] = "refuse"
    max_saturated_share: float | None = Field(default=None, gt=0.0, lt=1.0)
    burned_in: Literal["use", "refuse", "require-no"] = "refuse"
    shared_pixels: Literal["refuse", "use"] = "refuse"
    min_patients_per_class: int = Field(default=0, ge=0, le=1_000_000)
    max_unusable_share: float | None = Field(default=None, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for side in ("rows", "columns"):
            least, most = getattr(self, f"min_{side}"), getattr(self, f"max_{side}")
            if least > most:
                raise ValueError(f"min_{side} = {least} exceeds max_{side} = {most}: no image could be used")
        if self.unstated == "refuse" and not (self.views or self.body_parts):
            raise ValueError(
                'unstated = "refuse" would change nothing: it belongs to views or body_parts; leave it out'
            )
        return self
