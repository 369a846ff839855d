"""What a study may ask of an image beyond its pixels: frames, Hounsfield units, orientation, spacing, palettes."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from dicom_files import dataset, gradient, make_image, write
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydicom.dataset import Dataset
from pydicom.pixels.processing import _expand_segmented_lut  # the independent expansion of the test below
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage, ParametricMapStorage, RLELossless

from client.dicom_file import Unusable, opened, read_header
from client.dicom_image import check_image, read_image
from client.orientation import upright
from client.palette import expanded
from client.preparation import fit, prepare, resampled
from client.reasons import Reason
from shared_models.study import Image

CT = make_image(modalities=("CT",), intensity="hounsfield", window_center=40.0, window_width=400.0)


def prepared(folder: Path, made: Dataset, image: Image) -> np.ndarray:
    return prepare(read_image(write(folder / "one.dcm", made), image), image)


def reason(folder: Path, made: Dataset, image: Image) -> Reason:
    with pytest.raises(Unusable) as finding:
        prepared(folder, made, image)
    return finding.value.reason


def item(**attributes: object) -> Dataset:
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


# frames


def stack(num_frames: int, **attributes: object) -> Dataset:
    """Frame f has the value 10·f everywhere."""
    frames = np.repeat(np.arange(num_frames, dtype="uint8") * 10, 256).reshape(num_frames, 16, 16)
    made = dataset(frames[0], NumberOfFrames=num_frames, **attributes)
    made.PixelData = frames.tobytes()
    return made


@pytest.mark.parametrize(("num_frames", "middle"), [(1, 0), (2, 0), (3, 1), (4, 1), (9, 4)])
@pytest.mark.parametrize("compressed", [False, True])
def test_the_middle_frame_is_the_one_that_is_used(
    tmp_path: Path, num_frames: int, middle: int, compressed: bool
) -> None:
    made = stack(num_frames)
    if compressed:
        made.compress(RLELossless, encoding_plugin="pydicom")
    found = prepared(tmp_path, made, make_image(frames="middle"))
    np.testing.assert_allclose(found, middle * 10 / 255, atol=1e-7)


def test_several_frames_are_refused_unless_the_study_takes_one_of_them(tmp_path: Path) -> None:
    assert reason(tmp_path, stack(2), make_image()) is Reason.MULTI_FRAME


def test_frames_that_are_missing_at_the_end_are_found_before_decoding(tmp_path: Path) -> None:
    made = stack(4)
    made.NumberOfFrames = 5
    assert reason(tmp_path, made, make_image(frames="middle")) is Reason.TRUNCATED


def enhanced(**frame: object) -> Dataset:
    """Three frames of CT; each has its own intercept, the slope is shared."""
    frames = np.full((3, 16, 16), 1000, dtype="uint16")
    made = dataset(
        frames[0], modality="CT", bits_stored=12, SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=3
    )
    made.PixelData = frames.tobytes()
    made.SharedFunctionalGroupsSequence = Sequence(
        [item(PixelMeasuresSequence=Sequence([item(PixelSpacing=[2.0, 1.0])]))]
    )
    made.PerFrameFunctionalGroupsSequence = Sequence(
        [
            item(
                PixelValueTransformationSequence=Sequence(
                    [item(RescaleSlope=1, RescaleIntercept=intercept, RescaleType="HU")]
                ),
                FrameContentSequence=Sequence([item(FrameComments="Oftering, Walburga")]),
                **frame,
            )
            for intercept in (0, -1000, -2000)
        ]
    )
    return made


def test_an_enhanced_ct_has_its_units_from_the_frame_that_is_used(tmp_path: Path) -> None:
    """Stored 1000 with the middle frame's intercept of -1000 is 0 HU."""
    image = make_image(
        modalities=("CT",), intensity="hounsfield", window_center=0.0, window_width=1001.0, frames="middle"
    )
    found = prepared(tmp_path, enhanced(), image)
    np.testing.assert_allclose(found[0, :, 8], (0 + 0.5) / 1000 + 0.5, atol=1e-6)
    assert (found[0, :, :4] == 0).all()  # twice as high as wide: padded at the sides


def test_of_functional_groups_only_what_is_used_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "one.dcm", enhanced())
    kept = read_image(path, make_image(modalities=("CT",), frames="middle"))
    assert "Oftering" not in str(kept)
    assert not [element for element in kept if "FunctionalGroups" in element.keyword]
    with opened(path) as file:
        assert "PerFrameFunctionalGroupsSequence" not in read_header(file)


def test_a_frame_without_functional_groups_has_no_units(tmp_path: Path) -> None:
    made = enhanced()
    del made.PerFrameFunctionalGroupsSequence[1:]
    assert reason(tmp_path, made, CT.model_copy(update={"frames": "middle"})) is Reason.NOT_HOUNSFIELD


# Hounsfield units


def ct(**attributes: object) -> Dataset:
    values = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 9, "WindowWidth": 9, **attributes}
    pixels = np.linspace(0, 4095, 256).round().astype("uint16").reshape(16, 16)
    return dataset(pixels, modality="CT", bits_stored=12, **values)


def test_hounsfield_units_go_through_the_studys_window_and_not_the_files(tmp_path: Path) -> None:
    made = ct()
    units = np.frombuffer(made.PixelData, dtype="<u2").reshape(16, 16).astype(float) - 1024
    expected = np.clip((units - 39.5) / 399 + 0.5, 0, 1)
    np.testing.assert_allclose(prepared(tmp_path, made, CT)[0], expected, atol=1e-6)


def test_the_same_units_stored_in_another_way_give_the_same_tensor(tmp_path: Path) -> None:
    first = ct()
    second = ct(RescaleSlope=0.5, RescaleIntercept=-2000)
    units = np.frombuffer(first.PixelData, dtype="<u2").astype(int) - 1024
    second.PixelData = ((units + 2000) * 2).astype("<u2").tobytes()
    second.BitsStored, second.HighBit = 16, 15
    np.testing.assert_array_equal(prepared(tmp_path, first, CT), prepared(tmp_path, second, CT))


@pytest.mark.parametrize(
    "attributes",
    [
        {"RescaleType": "US"},
        {"RescaleType": "MGML"},
        {"RescaleSlope": None},
        {"RescaleIntercept": None},
        {"RescaleSlope": 0},
        {"RescaleSlope": -1},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"ModalityLUTSequence": Sequence([item(LUTDescriptor=[1, 0, 16], LUTData=b"\0\0")])},
    ],
)
def test_a_ct_whose_values_are_not_hounsfield_units_is_refused(
    tmp_path: Path, attributes: dict[str, object]
) -> None:
    assert reason(tmp_path, ct(**attributes), CT) is Reason.NOT_HOUNSFIELD


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"intensity": "window", "window_center": 40.0}, "window_center would change nothing"),
        ({"intensity": "percentiles", "window_width": 40.0}, "window_width would change nothing"),
        ({"window_center": 4.0}, "needs window_center and window_width"),
        ({"window_center": 4.0, "window_width": 4.0, "modalities": ("MR",)}, "modalities"),
        ({"window_center": 4.0, "window_width": 4.0, "channels": 3}, "channels"),
    ],
)
def test_a_study_window_that_would_change_nothing_or_is_incomplete_is_refused(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        make_image(**{"modalities": ("CT",), "intensity": "hounsfield", **changes})


# orientation

UPRIGHT = make_image(orientation="standard")
_OPPOSITE = dict(zip("LRAPHF", "RLPAFH", strict=True))


@pytest.mark.parametrize("first", "LRHF")
@pytest.mark.parametrize("second", "LRHF")
def test_a_frontal_radiograph_is_upright_however_it_is_stored(
    tmp_path: Path, first: str, second: str
) -> None:
    """Left, right, head and feet are marked in the picture; afterwards each mark is where it belongs."""
    marks = {"L": (slice(None), slice(12, 16)), "R": (slice(None), slice(0, 4))}
    if first in (second, _OPPOSITE[second]):
        made = dataset(gradient(), PatientOrientation=[first, second])
        assert reason(tmp_path, made, UPRIGHT) is Reason.ORIENTATION
        return
    standard = np.zeros((16, 16), dtype="uint8")
    standard[marks["L"]] = 50
    standard[12:] += np.uint8(100)  # feet
    standard[:4, :8] = 7
    stored = standard
    if first in "HF":
        stored = stored.T
    if first in "RH":
        stored = stored[:, ::-1]
    if second in "RH":
        stored = stored[::-1]
    made = dataset(np.ascontiguousarray(stored), PatientOrientation=[first, second])
    found = prepared(tmp_path, made, UPRIGHT)
    np.testing.assert_array_equal(found[0], (standard / 255).astype(np.float32))


@pytest.mark.parametrize(
    ("cosines", "equal_to"),
    [
        ([1, 0, 0, 0, 1, 0], ["L", "P"]),
        ([-1, 0, 0, 0, 1, 0], ["R", "P"]),
        ([0, 1, 0, 0, 0, -1], ["P", "F"]),
        ([0.9, 0.1, 0.42, 0.1, 0.1, -0.98], ["L", "F"]),
        ([0, 0, 1, 0.9, 0.3, 0], ["H", "L"]),
    ],
)
def test_cosines_and_letters_say_the_same(tmp_path: Path, cosines: list[float], equal_to: list[str]) -> None:
    pixels = np.random.default_rng(2).integers(0, 255, (16, 16)).astype("uint8")
    by_cosines = prepared(tmp_path, dataset(pixels, ImageOrientationPatient=cosines), UPRIGHT)
    by_letters = prepared(tmp_path, dataset(pixels, PatientOrientation=equal_to), UPRIGHT)
    np.testing.assert_array_equal(by_cosines, by_letters)


def test_an_image_that_says_nothing_stays_as_it_is_and_so_does_each_where_the_study_does_not_ask(
    tmp_path: Path,
) -> None:
    for made, image in (
        (dataset(gradient()), UPRIGHT),
        (dataset(gradient(), PatientOrientation=""), UPRIGHT),
        (dataset(gradient(), PatientOrientation=["F", "R"]), make_image()),
    ):
        np.testing.assert_array_equal(
            prepared(tmp_path, made, image)[0], (gradient() / 255).astype(np.float32)
        )


@pytest.mark.parametrize("value", [["L"], ["L", "X"], ["L", "F", "A"], ["l", "f"], ["", "F"]])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_orientation_that_cannot_be_is_refused(tmp_path: Path, value: list[str]) -> None:
    assert reason(tmp_path, dataset(gradient(), PatientOrientation=value), UPRIGHT) is Reason.ORIENTATION


@pytest.mark.parametrize("cosines", [[0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0], [1, 0, 0]])
def test_cosines_that_cannot_be_are_refused(tmp_path: Path, cosines: list[float]) -> None:
    made = dataset(gradient(), ImageOrientationPatient=cosines)
    assert reason(tmp_path, made, UPRIGHT) is Reason.ORIENTATION


def test_a_mammogram_is_not_turned_but_refused_where_it_lies_on_its_side(tmp_path: Path) -> None:
    image = make_image(orientation="standard", modalities=("MG",))
    for orientation in (["A", "R"], ["P", "L"], ["P", "FL"]):
        made = dataset(gradient(), modality="MG", PatientOrientation=orientation)
        np.testing.assert_array_equal(
            prepared(tmp_path, made, image)[0], (gradient() / 255).astype(np.float32)
        )
    made = dataset(gradient(), modality="MG", PatientOrientation=["F", "A"])
    assert reason(tmp_path, made, image) is Reason.ORIENTATION


@given(st.permutations("xyz"), st.tuples(st.booleans(), st.booleans()))
def test_what_is_upright_stays_so(axes: list[str], signs: tuple[bool, bool]) -> None:
    letters = {"x": "LR", "y": "PA", "z": "HF"}
    stored = [letters[axis][sign] for axis, sign in zip(axes, signs, strict=False)]
    pixels = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    once = upright(pixels, dataset(gradient(), PatientOrientation=stored))
    plane = frozenset(axes[:2])
    target = {frozenset("xz"): ["L", "F"], frozenset("yz"): ["P", "F"], frozenset("xy"): ["L", "P"]}[plane]
    again = upright(once, dataset(gradient(), PatientOrientation=target))
    np.testing.assert_array_equal(once, again)
    assert sorted(once.ravel()) == sorted(pixels.ravel())


# spacing


def test_with_a_spacing_the_same_disc_has_the_same_size_from_every_detector(tmp_path: Path) -> None:
    """A disc of 20 mm, sampled at three spacings, is 20 pixels of 1 mm wide in each tensor."""
    image = make_image(rows=48, columns=48, spacing=1.0)
    sizes = []
    for keyword, row, column in (
        ("PixelSpacing", 0.2, 0.2),
        ("ImagerPixelSpacing", 0.5, 0.25),
        ("NominalScannedPixelSpacing", 0.4, 0.8),
    ):
        y, x = np.mgrid[0 : 30 / row, 0 : 40 / column]
        disc = ((y + 0.5) * row - 15) ** 2 + ((x + 0.5) * column - 20) ** 2 < 100
        made = dataset((255 * disc).astype("uint8"), **{keyword: [row, column]})
        found = prepared(tmp_path, made, image)[0]
        sizes.append((found[24].sum(), found[:, 24].sum(), found.sum()))
        assert (found[:8] == 0).all()
        assert (found[-8:] == 0).all()
    for across, down, area in sizes:
        assert across == pytest.approx(20, abs=1.0)
        assert down == pytest.approx(20, abs=1.0)
        assert area == pytest.approx(np.pi * 100, rel=0.02)


def test_what_is_larger_than_the_tensor_is_cut_in_the_middle() -> None:
    plane = np.zeros((100, 80), dtype=np.float32)
    plane[42:58, 32:48] = 1
    image = make_image(spacing=0.5)
    assert (resampled(plane, (0.5, 0.5), 0.5, image) == 1).all()


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(1e-6, 1e6),
    st.floats(1e-6, 1e6),
    st.floats(0.001, 100.0),
)
def test_no_spacing_makes_anything_larger_than_the_tensor(
    height: int, width: int, row: float, column: float, wanted: float
) -> None:
    plane = np.random.default_rng(1).random((height, width), dtype=np.float32)
    found = resampled(plane, (row, column), wanted, make_image(spacing=wanted))
    assert found.shape == (16, 16)
    assert 0.0 <= found.min() <= found.max() <= plane.max() + 1e-6


@pytest.mark.parametrize("attributes", [{}, {"PixelSpacing": [0, 0]}, {"PixelAspectRatio": [1, 2]}])
def test_an_image_that_does_not_tell_its_spacing_is_refused_where_the_study_asks(
    tmp_path: Path, attributes: dict[str, object]
) -> None:
    made = dataset(gradient(), **attributes)
    assert reason(tmp_path, made, make_image(spacing=1.0)) is Reason.NO_SPACING
    prepared(tmp_path, made, make_image())


@pytest.mark.parametrize("aspect", ["crop", "stretch"])
def test_an_aspect_that_would_change_nothing_is_refused(aspect: str) -> None:
    with pytest.raises(ValidationError, match="would change nothing"):
        make_image(spacing=1.0, aspect=aspect)


@pytest.mark.parametrize(
    "attributes",
    [{"PixelSpacing": [2.0, 1.0]}, {"ImagerPixelSpacing": [0.2, 0.1]}, {"PixelAspectRatio": [2, 1]}],
)
def test_pixels_that_are_not_square_become_square(tmp_path: Path, attributes: dict[str, object]) -> None:
    """16 rows of pixels twice as high as wide: the picture is twice as high as wide, and padded at the sides."""
    found = prepared(tmp_path, dataset(np.full((16, 16), 255, "uint8"), **attributes), make_image())
    assert (found[0, :, 4:12] == 1).all()
    assert (found[0, :, :4] == 0).all()
    assert (found[0, :, 12:] == 0).all()


def test_a_turned_image_has_its_spacing_turned_too(tmp_path: Path) -> None:
    """Stored on its side with pixels twice as wide as high: upright, it is twice as high as wide."""
    made = dataset(np.full((16, 16), 255, "uint8"), PixelSpacing=[1.0, 2.0], PatientOrientation=["F", "L"])
    found = prepared(tmp_path, made, UPRIGHT)
    assert (found[0, :, 4:12] == 1).all()
    assert (found[0, :, :4] == 0).all()


@pytest.mark.parametrize("spacing", [[100.0, 1.0], [1e-3, 1.0]])
def test_pixels_that_no_device_makes_are_refused(tmp_path: Path, spacing: list[float]) -> None:
    made = dataset(gradient(), PixelSpacing=spacing)
    assert reason(tmp_path, made, make_image()) is Reason.BAD_ATTRIBUTE


@pytest.mark.parametrize("aspect", ["pad", "crop", "stretch"])
def test_square_pixels_give_the_bits_that_they_always_gave(aspect: str) -> None:
    plane = np.random.default_rng(1).random((37, 53), dtype=np.float32)
    image = make_image(aspect=aspect)
    np.testing.assert_array_equal(fit(plane, image), fit(plane, image, 1.0))


# kinds of pixels


def floating(pixels: np.ndarray, **attributes: object) -> Dataset:
    made = dataset(gradient(), SOPClassUID=ParametricMapStorage, **attributes)
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(made, keyword)
    made.BitsAllocated = 8 * pixels.itemsize
    made.Rows, made.Columns = pixels.shape
    setattr(made, "FloatPixelData" if pixels.itemsize == 4 else "DoubleFloatPixelData", pixels.tobytes())
    return made


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_floating_point_pixels_go_from_their_lowest_to_their_highest_value(
    tmp_path: Path, dtype: str
) -> None:
    pixels = np.linspace(-3.5, 6.5, 256).reshape(16, 16).astype(dtype)
    found = prepared(tmp_path, floating(pixels), make_image())
    np.testing.assert_allclose(found[0], np.linspace(0, 1, 256).reshape(16, 16), atol=1e-6)
    windowed = floating(pixels, WindowCenter=1.5, WindowWidth=4, VOILUTFunction="LINEAR_EXACT")
    expected = np.clip((pixels - 1.5) / 4 + 0.5, 0, 1)
    np.testing.assert_allclose(
        prepared(tmp_path, windowed, make_image(intensity="window"))[0], expected, atol=1e-6
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    pixels = np.zeros((16, 16), dtype="<f4")
    pixels[3, 4] = value
    assert reason(tmp_path, floating(pixels), make_image()) is Reason.UNSUPPORTED_PIXELS


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    bits = np.random.default_rng(3).integers(0, 2, (16, 16)).astype("uint8")
    made = dataset(gradient(), BitsAllocated=1, BitsStored=1, HighBit=0)
    made.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()
    np.testing.assert_array_equal(prepared(tmp_path, made, make_image())[0], bits.astype(np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
def test_integers_of_every_size_fill_their_range(tmp_path: Path, dtype: str) -> None:
    ends = np.iinfo(dtype)
    pixels = np.zeros((16, 16), dtype=dtype)
    pixels[0], pixels[1] = ends.min, ends.max
    found = prepared(tmp_path, dataset(pixels), make_image())[0]
    assert (found[0] == 0).all()
    assert (found[1] == 1).all()


# segmented palettes

SEGMENTS: list[Callable[[], list[int]]] = [
    lambda: [0, 3, 5, 6, 7],
    lambda: [0, 1, 0, 1, 255, 65535],
    lambda: [0, 2, 10, 20, 1, 5, 100, 1, 3, 40],
]


@pytest.mark.parametrize("segments", [make() for make in SEGMENTS])
def test_a_segmented_palette_expands_as_pydicom_expands_it(segments: list[int]) -> None:
    words = np.asarray(segments, dtype="<u2")
    assert expanded(words) == _expand_segmented_lut(tuple(segments), "<H")


def test_an_indirect_segment_repeats_those_that_it_names() -> None:
    """Source: DICOM PS3.3 section C.7.9.2.3; the offset is in bytes, its low part first."""
    words = np.asarray([0, 2, 8, 9, 1, 2, 19, 2, 2, 0, 0], dtype="<u2")
    assert expanded(words) == [8, 9, 14, 19, 8, 9, 14, 19]


@pytest.mark.parametrize(
    "segments",
    [
        [1, 4, 9],
        [0, 4, 1],
        [3, 1, 1],
        [0, 1, 1, 2, 1, 1, 0],
        [0, 1, 1, 2, 1, 2, 0],
        [0, 1, 1, 2, 1, 6, 0],
        [0, 1, 1, 1, 65535, 2, 1, 65535, 3],
        [0, 1, 1, 1, 5],
    ],
)
def test_a_segmented_palette_that_cannot_be_is_refused(segments: list[int]) -> None:
    with pytest.raises((ValueError, IndexError)):
        expanded(np.asarray(segments, dtype="<u2"))


@given(st.lists(st.integers(0, 65535) | st.integers(0, 3), max_size=60))
def test_no_segmented_palette_grows_without_end(segments: list[int]) -> None:
    with suppress(ValueError, IndexError):
        assert len(expanded(np.asarray(segments, dtype="<u2"))) <= 65536


def test_an_image_with_a_segmented_palette_has_its_colours(tmp_path: Path) -> None:
    pixels = (np.arange(256, dtype="uint8") % 4).reshape(16, 16)
    made = dataset(pixels, photometric="PALETTE COLOR", modality="XC")
    tables = {"Red": [0, 1, 0, 1, 3, 65535], "Green": [0, 4, 1, 2, 3, 4], "Blue": [0, 1, 65535, 1, 3, 0]}
    for colour, entries in tables.items():
        made.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [4, 0, 16])
        data = np.asarray(entries, dtype="<u2").tobytes()
        made.add_new(f"Segmented{colour}PaletteColorLookupTableData", "OW", data)
    found = prepared(tmp_path, made, make_image(modalities=("XC",), channels=3))
    expected = np.asarray([0, 21845, 43690, 65535])[pixels] / 65535
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    np.testing.assert_allclose(found[2], 1 - expected, atol=1e-6)


def test_checks_that_need_no_pixels_come_first(tmp_path: Path) -> None:
    with opened(write(tmp_path / "one.dcm", stack(3))) as file:
        header = read_header(file)
        check_image(header, file, make_image(frames="middle"))
        assert "PixelData" not in header
