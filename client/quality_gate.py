"""Whether one image is good enough: what the study's and the site's ``[quality]`` say of a header, then of pixels."""

from dataclasses import dataclass

from client.dicom_file import Unusable
from client.file_facts import HeaderFacts, PixelFacts
from client.quality_file import SiteQuality
from client.reasons import Reason
from shared_models.quality import Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityGate:
    """Judges each image by itself, from what is remembered of it.

    Args:
        study: what all hospitals agreed on.
        site: what this hospital adds.
    """

    study: Quality
    site: SiteQuality

    def check_header(self, facts: HeaderFacts) -> None:
        """Check what is known before pixels are read. Raises Unusable."""
        study = self.study
        _check_code(facts.view, study.views, study, Reason.OTHER_VIEW)
        _check_code(facts.body_part, study.body_parts, study, Reason.OTHER_BODY_PART)
        if study.photometric and facts.photometric not in study.photometric:
            raise Unusable(Reason.OTHER_PHOTOMETRIC, f"It is {facts.photometric or 'empty'}.")
        self._check_size(facts)
        if (facts.burned_in == "YES" and study.burned_in != "use") or (
            facts.burned_in != "NO" and study.burned_in == "require-no"
        ):
            raise Unusable(Reason.BURNED_IN, f"The flag is {facts.burned_in or 'empty'}.")
        if self.site.identifiers == "refuse" and (detail := facts.identifying.why_not_deidentified):
            raise Unusable(Reason.NOT_DEIDENTIFIED, detail)

    def check_pixels(self, facts: PixelFacts) -> None:
        """Check what the stored values say. Raises Unusable."""
        if facts.blank and self.study.blank == "refuse":
            raise Unusable(Reason.BLANK)
        most, share = self.study.max_saturated_share, max(facts.lowest_share, facts.highest_share)
        if most is not None and share > most:
            raise Unusable(Reason.SATURATED, f"{share:.1%} of the pixels; the study allows {most:.1%}.")

    def _check_size(self, facts: HeaderFacts) -> None:
        study, rows, columns = self.study, facts.rows, facts.columns
        if rows is None or columns is None:
            return  # it is no image, or one whose size is a reason of its own
        if not (
            study.min_rows <= rows <= study.max_rows and study.min_columns <= columns <= study.max_columns
        ):
            raise Unusable(
                Reason.WRONG_SIZE,
                f"{rows} × {columns}; the study allows {study.min_rows} to {study.max_rows} rows and "
                f"{study.min_columns} to {study.max_columns} columns.",
            )


def _check_code(code: str, wanted: tuple[str, ...], study: Quality, reason: Reason) -> None:
    if not wanted or code in wanted or (not code and study.unstated == "use"):
        return
    raise Unusable(reason, f"It is {code or 'empty'}; the study uses {', '.join(wanted)}.")
