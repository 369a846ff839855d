"""Series of DICOM files as volumes, against SimpleITK reading the same files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import RLELossless
from pydicom.values import converters
from series_files import HOUNSFIELD, by_simpleitk, changed, shuffled, write_enhanced, write_series

from client.dicom_file import Unusable
from client.reasons import Reason
from client.series import prepared_volume, read_series

GRID = {"spacing": (1.0, 1.0, 1.0), "shape": (20, 26, 24)}


@pytest.mark.parametrize("kind", ["axial", "oblique"])
def test_a_shuffled_series_is_that_of_simpleitk_in_hounsfield_units(tmp_path: Path, kind: str) -> None:
    from client.volume import resampled

    paths = write_series(tmp_path / "series", kind=kind)
    found = resampled(read_series(shuffled(paths), HOUNSFIELD), **GRID, outside=-5000.0)  # type: ignore[arg-type]
    want = by_simpleitk(paths, **GRID)  # type: ignore[arg-type]
    assert (want != -5000.0).mean() > 0.3
    alike = np.abs(found - want) < 0.05  # Hounsfield units, of a range of 600
    assert alike.mean() > 0.999, "but for a place that lies on the border to rounding"


def test_the_frames_of_one_file_are_the_same_volume_as_one_file_each(tmp_path: Path) -> None:
    one_each = read_series(write_series(tmp_path / "series", kind="oblique"), HOUNSFIELD)
    enhanced = read_series([write_enhanced(tmp_path / "enhanced.dcm")], HOUNSFIELD)
    assert np.array_equal(one_each.values, enhanced.values)
    assert np.allclose(one_each.origin, enhanced.origin)
    assert np.allclose(one_each.steps, enhanced.steps)


def test_levels_are_the_studys_window_and_black_around_it(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path / "series"), HOUNSFIELD)
    found = prepared_volume(volume, HOUNSFIELD, spacing=(2.0, 1.1, 0.9), shape=(10, 24, 20))
    want = np.clip((volume.values - 39.5) / 399.0 + 0.5, 0.0, 1.0)
    assert np.abs(found - want).max() < 1e-4
    assert 0.0 < want.mean() < 1.0
    wide = prepared_volume(volume, HOUNSFIELD, spacing=(2.0, 1.1, 0.9), shape=(12, 26, 22))
    assert (wide[0] == 0.0).all()
    percentiles = HOUNSFIELD.model_copy(
        update={"intensity": "percentiles", "window_center": None, "window_width": None}
    )
    spread = prepared_volume(volume, percentiles, spacing=(2.0, 1.1, 0.9), shape=(10, 24, 20))
    assert (spread.min(), spread.max()) == (0.0, 1.0)
    with pytest.raises(ValueError, match="no meaning"):
        prepared_volume(
            volume, percentiles.model_copy(update={"intensity": "window"}), spacing=(1, 1, 1), shape=(2, 2, 2)
        )


def refusal(paths: Sequence[Path]) -> Unusable:
    with pytest.raises(Unusable) as raised:
        read_series(paths, HOUNSFIELD)
    return raised.value


def test_what_makes_no_volume_is_refused_with_its_reason(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series")
    assert refusal([*paths[:4], *paths[5:]]).reason is Reason.MISSING_SLICE
    assert read_series([*paths, paths[3]], HOUNSFIELD).num_dropped == 1
    others = write_series(tmp_path / "others", series="2")
    assert "several series" in str(refusal([*paths, others[0]]))
    assert "1 slice" in str(refusal(paths[:1]))
    (tmp_path / "text.dcm").write_text("no DICOM")
    assert refusal([*paths, tmp_path / "text.dcm"]).reason is Reason.NOT_DICOM


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("ImagePositionPatient", None, Reason.NO_VOLUME),
        ("ImagePositionPatient", ["1", "2"], Reason.NO_VOLUME),
        ("ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"], Reason.BAD_ATTRIBUTE),
        ("PixelSpacing", None, Reason.NO_SPACING),
        ("RescaleType", "US", Reason.NOT_HOUNSFIELD),
        ("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], Reason.NOT_HOUNSFIELD),
    ],
)
def test_a_slice_that_does_not_say_where_it_lies_or_what_it_shows_is_refused(
    tmp_path: Path, keyword: str, value: object, reason: Reason
) -> None:
    paths = write_series(tmp_path / "series")
    changed(paths[2], **{keyword: value})
    assert refusal(paths).reason is reason


def test_a_file_that_claims_a_million_frames_is_refused_before_one_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_enhanced(tmp_path / "one.dcm")
    dataset = dcmread(path)
    dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    dataset.save_as(path)
    read_series([path], HOUNSFIELD)
    changed(path, NumberOfFrames=1_000_000)
    monkeypatch.setattr("client.series.decode", None)
    assert refusal([path]).reason is Reason.TOO_LARGE


@pytest.mark.slow
def test_the_groups_of_all_frames_are_parsed_once_and_not_for_each_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2,000 frames they would be parsed 4,000,000 times."""
    path, parse, num_parsed = write_enhanced(tmp_path / "one.dcm"), converters["SQ"], 0

    def counted(*values: object, **options: object) -> object:
        nonlocal num_parsed
        num_parsed += 1
        return parse(*values, **options)  # type: ignore[operator]

    monkeypatch.setitem(converters, "SQ", counted)
    read_series([path], HOUNSFIELD)
    assert num_parsed <= 2 * 10
