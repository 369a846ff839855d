"""The table ``[training.augmentation]``: how images are altered at random. All of it is public."""

from typing import Literal, TypeAlias

from pydantic import Field

from shared_models.configuration import Frozen

Axis: TypeAlias = Literal["columns", "rows", "slices"]
AXES: tuple[Axis, ...] = ("columns", "rows", "slices")
"""From the last axis of an image to the first."""


class Augmentation(Frozen):
    """What may happen to an image in a step. Each image is altered by itself, and anew in each step.

    Attributes:
        flip: axes along which an image is mirrored with probability one half; whether anatomy allows that is for the
            author of the study to say.
        rotation: largest angle in degrees; of a volume around each of its axes.
        shift: largest shift along each axis, as a share of the image.
        scale: largest change of size: by a factor between 1 / (1 + scale) and 1 + scale.
        shear: largest angle of a shear in degrees.
        brightness: largest number that is added to all levels, which are in [0, 1].
        contrast: largest change of contrast around the level 0.5, by a factor as with *scale*.
        gamma: largest change of the exponent of all levels, by a factor as with *scale*.
        noise: largest standard deviation of Gaussian noise on each pixel, by itself.
    """

    flip: tuple[Axis, ...] = Field(default=(), strict=False)
    rotation: float = Field(default=0.0, ge=0.0, le=180.0)
    shift: float = Field(default=0.0, ge=0.0, le=0.5)
    scale: float = Field(default=0.0, ge=0.0, le=1.0)
    shear: float = Field(default=0.0, ge=0.0, le=45.0)
    brightness: float = Field(default=0.0, ge=0.0, le=0.5)
    contrast: float = Field(default=0.0, ge=0.0, le=2.0)
    gamma: float = Field(default=0.0, ge=0.0, le=2.0)
    noise: float = Field(default=0.0, ge=0.0, le=0.5)

    @property
    def moves(self) -> bool:
        """Whether pixels go to places between pixels, so that images are interpolated."""
        return bool(self.rotation or self.shift or self.scale or self.shear)

    @property
    def changes_levels(self) -> bool:
        """Whether levels are changed where pixels stay."""
        return bool(self.brightness or self.contrast or self.gamma or self.noise)

    @property
    def alters(self) -> bool:
        """Whether it does anything."""
        return bool(self.flip) or self.moves or self.changes_levels
