"""From stored values to levels."""

import numpy as np
import pytest
from dicom_files import dataset, make_image, write
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian

from client.dicom_file import Unusable
from client.dicom_image import decode, read_image
from client.intensity import Function, Window, first_window, grey_levels, has_window, read_table
from client.reasons import Reason


def stored(tmp_path_factory: pytest.TempPathFactory, made: Dataset) -> FileDataset:
    """The data set as it is after writing and reading."""
    return read_image(
        write(tmp_path_factory.mktemp("dicom") / "one.dcm", made), make_image(rows=8, columns=8)
    )


@pytest.fixture
def levels(tmp_path_factory: pytest.TempPathFactory):
    """Levels of a data set under a choice of intensity."""

    def compute(made: Dataset, intensity: str = "window", **changes: object) -> np.ndarray:
        read = stored(tmp_path_factory, made)
        return grey_levels(decode(read), read, make_image(intensity=intensity, **changes))

    return compute


@pytest.mark.parametrize(
    ("window", "values", "expected"),
    [
        # PS3.3 C.11.2.1.2.1, the standard's own examples
        (Window(center=2048, width=4096), [-1, 0, 1, 4095, 4096], [0, 0, 1 / 4095, 1, 1]),
        (Window(center=2048, width=1), [2047, 2048], [0, 1]),
        (Window(center=0, width=100), [-51, -50, -49, 0, 49, 50], [0, 0, 1 / 99, 0.5 / 99 + 0.5, 1, 1]),
        (Window(center=0, width=1), [-1, 0], [0, 1]),
        # PS3.3 C.11.2.1.3.2
        (
            Window(center=2048, width=4096, function=Function.LINEAR_EXACT),
            [0, 1024, 4096, 5000],
            [0, 0.25, 1, 1],
        ),
        (Window(center=0, width=100, function=Function.LINEAR_EXACT), [-50, 0, 25, 50], [0, 0.5, 0.75, 1]),
        # PS3.3 C.11.2.1.3.1: 1 / (1 + exp(−4 (x − c) / w))
        (
            Window(center=10, width=4, function=Function.SIGMOID),
            [10, 11, 9],
            [0.5, 0.7310585786, 0.2689414214],
        ),
        (Window(center=0, width=0.001, function=Function.SIGMOID), [-1e6, 1e6], [0, 1]),
    ],
)
def test_windows_have_the_values_of_the_standard(
    window: Window, values: list[float], expected: list[float]
) -> None:
    np.testing.assert_allclose(window.apply(np.asarray(values, dtype=np.float64)), expected, atol=1e-9)


def test_a_window_acts_on_rescaled_values(levels) -> None:
    pixels = np.arange(0, 640, 10, dtype="uint16").reshape(8, 8)
    made = dataset(pixels, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=-500, WindowWidth=401)
    expected = np.clip((2.0 * pixels - 1000 + 500.5) / 400 + 0.5, 0, 1)
    np.testing.assert_allclose(levels(made), expected)


def test_of_several_windows_the_first_is_used(levels) -> None:
    pixels = np.arange(64, dtype="uint8").reshape(8, 8)
    one = dataset(pixels, WindowCenter=32, WindowWidth=64)
    several = dataset(pixels, WindowCenter=[32, 5], WindowWidth=[64, 10])
    np.testing.assert_array_equal(levels(one), levels(several))


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 10, "WindowWidth": 0}, {"WindowCenter": 10}])
def test_without_a_window_the_full_range_is_used(levels, window: dict[str, float]) -> None:
    pixels = np.arange(64, dtype="uint16").reshape(8, 8)
    made = dataset(pixels, bits_stored=12, RescaleSlope=3, RescaleIntercept=-50, **window)
    np.testing.assert_allclose(levels(made), pixels / 4095)
    assert first_window(made) is None  # type: ignore[arg-type]


def test_signed_values_have_their_full_range(levels) -> None:
    pixels = np.linspace(-2048, 2047, 64).round().astype("int16").reshape(8, 8)
    np.testing.assert_allclose(
        levels(dataset(pixels, bits_stored=12), "full-range"), (pixels.astype(float) + 2048) / 4095
    )


def test_a_negative_slope_turns_the_full_range_over(levels) -> None:
    pixels = np.arange(64, dtype="uint8").reshape(8, 8)
    made = dataset(pixels, RescaleSlope=-1, RescaleIntercept=0)
    np.testing.assert_allclose(levels(made, "full-range"), 1 - pixels / 255)


@pytest.mark.parametrize("intensity", ["window", "full-range", "percentiles"])
def test_monochrome1_equals_inverted_monochrome2(levels, intensity: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 4096, (8, 8)).astype("uint16")
    window = {"WindowCenter": 1000, "WindowWidth": 2000}
    dark = dataset(pixels, bits_stored=12, photometric="MONOCHROME1", **window)
    bright = dataset(pixels, bits_stored=12, **window)
    np.testing.assert_array_equal(levels(dark, intensity), 1.0 - levels(bright, intensity))


def test_percentiles_are_those_of_the_image(levels) -> None:
    pixels = np.arange(100, dtype="uint16").reshape(10, 10) * 7 + 300
    found = levels(dataset(pixels), "percentiles", low_percentile=10.0, high_percentile=90.0)
    low, high = np.percentile(pixels, [10, 90])
    np.testing.assert_allclose(found, np.clip((pixels - low) / (high - low), 0, 1))


@pytest.mark.parametrize("intensity", ["window", "full-range", "percentiles"])
@pytest.mark.parametrize("slope", [1, 0])
def test_an_image_of_one_value_divides_by_nothing(levels, intensity: str, slope: int) -> None:
    made = dataset(np.full((8, 8), 7, dtype="uint8"), RescaleSlope=slope, RescaleIntercept=5)
    found = levels(made, intensity)
    assert np.isfinite(found).all()
    assert np.ptp(found) == 0.0


def lookup(entries: list[int], first: int, bits: int, vr: str) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    packed = np.asarray(entries, dtype="<u2").tobytes()
    item.add_new("LUTData", vr, entries if vr == "US" else packed)
    return item


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("implicit", [True, False])
def test_a_voi_lookup_table_comes_before_a_window(levels, vr: str, implicit: bool) -> None:
    pixels = np.arange(64, dtype="uint16").reshape(8, 8)
    entries = [(number * 37) % 4096 for number in range(40)]
    made = dataset(pixels, WindowCenter=1, WindowWidth=2)
    made.VOILUTSequence = Sequence([lookup(entries, 10, 12, vr)])
    if implicit:
        made.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    expected = np.asarray(entries)[np.clip(pixels.astype(int) - 10, 0, 39)] / 4095
    np.testing.assert_allclose(levels(made), expected)


def test_a_modality_lookup_table_with_8_bit_entries_is_addressed_by_more_than_8_bits(levels) -> None:
    pixels = (np.arange(64, dtype="uint16") * 60).reshape(8, 8)
    made = dataset(pixels, bits_stored=12)
    made.ModalityLUTSequence = Sequence([lookup([number // 16 for number in range(4096)], 0, 8, "OW")])
    np.testing.assert_allclose(levels(made, "full-range"), (pixels // 16) / 255)


def test_packed_entries_follow_the_byte_order() -> None:
    assert read_table([2, 0, 16], b"\1\2\3\4", little_endian=True).entries.tolist() == [0x0201, 0x0403]
    assert read_table([2, 0, 16], b"\1\2\3\4", little_endian=False).entries.tolist() == [0x0102, 0x0304]
    assert read_table([4, 0, 8], b"\1\2\3\4", little_endian=True).entries.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("descriptor", [[3, 0, 16], [2, 0, 0], [2, 0, 17], [-1, 0, 8]])
def test_an_impossible_lookup_table_is_refused(descriptor: list[int]) -> None:
    with pytest.raises(ValueError, match="descriptor"):
        read_table(descriptor, b"\1\2\3\4", little_endian=True)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "attributes",
    [
        {"WindowCenter": 1, "WindowWidth": 2, "VOILUTFunction": "CUBIC"},
        {"RescaleSlope": float("nan"), "RescaleIntercept": 0},
        {"WindowCenter": float("inf"), "WindowWidth": 2},
    ],
)
def test_a_value_that_cannot_be_is_a_named_reason(levels, attributes: dict[str, object]) -> None:
    with pytest.raises(Unusable) as finding:
        levels(dataset(np.zeros((8, 8), dtype="uint8"), **attributes))
    assert finding.value.reason is Reason.BAD_ATTRIBUTE


@given(
    center=st.floats(-1e5, 1e5),
    width=st.floats(1.0, 1e5),
    function=st.sampled_from(Function),
    values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20).map(sorted),
)
def test_every_window_is_increasing_and_stays_in_the_unit_interval(
    center: float, width: float, function: Function, values: list[int]
) -> None:
    found = Window(center=center, width=width, function=function).apply(np.asarray(values, dtype=np.float64))
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= 0).all()


def test_a_file_with_a_window_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    pixels = np.zeros((8, 8), dtype="uint8")
    assert not has_window(stored(tmp_path_factory, dataset(pixels)))
    assert has_window(stored(tmp_path_factory, dataset(pixels, WindowCenter=1, WindowWidth=2)))
