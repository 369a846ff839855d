"""A review of a study that learns from masks says what is marked, and where the masks are."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from mask_sites import ORGANS, MaskedHospital, mask_study

from client.review_training import what_is_trained, which_images
from client.site_file import Masks

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def told(hospital: MaskedHospital, masks: Masks | None) -> dict[str, bool]:
    """Sentences, and which of them are warnings."""
    section = which_images(mask_study(), hospital.site(masks=masks), None, NOW)
    return {one.text: one.kind == "warning" for one in section.sentences}


@pytest.fixture
def hospital(tmp_path: Path) -> MaskedHospital:
    return MaskedHospital(tmp_path / "hospital")


def test_the_review_says_where_masks_are_and_how_they_are_found(hospital: MaskedHospital) -> None:
    (by_name,) = [text for text in told(hospital, Masks(folder=hospital.masks)) if "mask" in text]
    assert str(hospital.masks) in by_name
    assert "of the same name" in by_name
    (by_column,) = [
        text for text in told(hospital, Masks(folder=hospital.masks, column="outline")) if "mask" in text
    ]
    assert "“outline”" in by_column


def test_the_review_warns_where_nobody_has_said_where_masks_are(hospital: MaskedHospital) -> None:
    found = told(hospital, None)
    assert [warned for text, warned in found.items() if "[masks]" in text] == [True]


@pytest.mark.slow
def test_the_review_says_what_is_marked_and_by_which_values() -> None:
    text = " ".join(one.text for one in what_is_trained(mask_study(ORGANS), Path("weights")).sentences)
    assert "“liver” (value 1, 6 of the mask)" in text
    assert "“tumour” (value 2 of the mask)" in text
    assert "images without a mask are left out" in text
