"""The viewer in a real browser: list, keyboard, overlay, colours; no request but for files, no script from names."""

import json
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from explained_models import trained
from series_files import volume_study
from studies import ONE_QUESTION, THREE_CLASSES, make_study

from client.prediction.explanations.attribution import Attribution, Method
from client.prediction.explanations.colours import colour_table
from client.prediction.page import CARD_NAME, PAGE_NAME, Page
from client.prediction.reading import Plane, PointReading, Reading, Spread, Unread

NOW = datetime(2026, 3, 10, 12, 30, tzinfo=UTC)
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>'\"</td>.dcm"
SEGMENTATION = """kind = "segmentation"
structures = [{ name = "lung", values = [1] }, { name = "heart", values = [2] }]
"""


def plane_of(number: int, side: int = 24) -> Plane:
    values = np.random.default_rng(number).uniform(0.2, 0.6, (1, side, side))
    values[0, 4:8, 12:16] = 0.9
    return values.astype(np.float32)


def reading(number: int, chance: float, **changes: Any) -> Reading:
    values = {
        "name": f"folder/IM-{number:04d}.dcm",
        "files": (),
        "prepared": plane_of(number),
        "probabilities": {"positive": chance},
        "points": (PointReading(output="positive", name="youden", threshold=0.5, reached=chance >= 0.5),),
        "statements": {"positive": "In the study's test 30 of 40 patients with such a score had it."},
    }
    return Reading(**(values | changes))


def map_of(place: tuple[int, int] = (5, 13), largest: float = 2.0, side: int = 24) -> Attribution:
    values = np.zeros((side, side), dtype=np.float32)
    row, column = place
    values[row - 1 : row + 2, column - 1 : column + 2] = largest
    return Attribution(method=Method.GRAD_CAM, output="positive", values=values)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five readings of a plane image, one overridden, and two inputs that were not read."""
    folder = tmp_path_factory.mktemp("page") / "out"
    page = Page(folder, [trained(make_study())], now=NOW)
    for number, chance in enumerate((0.3, 0.8, 0.1, 0.6)):
        page.write(reading(number, chance), [map_of(), map_of((20, 2))])
    page.write(reading(4, 0.9, name=EVIL, overrides=("Its modality is MG; the model was trained on CR.",)))
    page.left_out(Unread(name=EVIL, code="not-dicom", sentence="It is no DICOM file."))
    page.left_out(
        Unread(name="mr", code="other-modality", sentence="It is MR.", can_be_overridden=True, num_files=30)
    )
    (folder / CARD_NAME).write_text("<!doctype html><title>card</title>")
    page.finish()
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def shown(browser: Browser, folder: Path) -> Browser:
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(folder / PAGE_NAME)
    browser.until("document.getElementById('told').textContent.length > 5")
    return browser


def text(browser: Browser, name: str) -> str:
    return str(browser.value(f"document.getElementById('{name}').innerText"))


def names(browser: Browser) -> list[str]:
    return list(browser.value("[...document.querySelectorAll('#rows th')].map((one) => one.textContent)"))


def pixel(browser: Browser, row: float, column: float) -> list[int]:
    """Of the picture, at this share of its height and width."""
    found = browser.value(
        "(() => { const c = document.getElementById('canvas'), one = document.createElement('canvas');"
        "one.width = one.height = 1; const context = one.getContext('2d', { willReadFrequently: true });"
        f"context.drawImage(c, -Math.floor(c.width * {column}), -Math.floor(c.height * {row}));"
        "return [...context.getImageData(0, 0, 1, 1).data]; })()"
    )
    return list(found)


def put(browser: Browser, name: str, value: float, event: str = "input") -> None:
    """Set a control as its user would."""
    browser.value(
        f"(() => {{ const one = document.getElementById('{name}'); one.value = {value}; "
        f"one.dispatchEvent(new Event('{event}')); }})()"
    )


# Files


def test_files_are_private_and_the_page_forbids_every_request_but_for_files(binary: Path) -> None:
    for path in binary.rglob("*"):
        if path.is_file() and path.name != CARD_NAME:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    page = (binary / PAGE_NAME).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    allowed = dict(part.strip().split(" ", 1) for part in policy.group(1).split(";"))
    assert allowed.pop("default-src") == "'none'"
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]+' 'self' file:", allowed.pop("script-src"))
    assert allowed == {"style-src": "'unsafe-inline'", "base-uri": "'none'", "form-action": "'none'"}
    assert not re.search(r"https?://", page)


def test_no_image_is_kept_in_memory_and_an_unfinished_page_is_no_page(tmp_path: Path) -> None:
    with Page(tmp_path / "out", [trained(make_study())], now=NOW) as page:
        for number in range(3):
            page.write(reading(number, 0.5))
        assert not any(isinstance(value, (list, dict)) for value in vars(page).values())
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["1.js", "2.js", "3.js", "images"]
    with Page(tmp_path / "out", [trained(make_study())], now=NOW) as page:
        page.finish()
    assert (tmp_path / "out" / PAGE_NAME).exists()
    assert not list((tmp_path / "out" / "images").iterdir())


# In the browser


@pytest.mark.slow
def test_the_list_shows_and_nothing_is_asked_of_a_network(browser: Browser, binary: Path) -> None:
    shown(browser, binary)
    assert len(names(browser)) == 7
    assert names(browser)[:4] == [f"folder/IM-000{number}.dcm" for number in range(4)]
    assert "5 read, 2 not read" in browser.value("document.body.innerText")
    assert "Not a medical device" in str(browser.value("document.querySelector('main p').innerText"))
    assert text(browser, "title") == "folder/IM-0000.dcm"
    assert "30 of 40 patients" in text(browser, "statements")
    assert "not reached youden" in " ".join(text(browser, "probabilities").split())
    assert browser.value(f"document.querySelector('a').getAttribute('href') === '{CARD_NAME}'")
    assert browser.requests
    assert all(one.startswith("file://") for one in browser.requests), browser.requests
    assert not browser.complaints


@pytest.mark.slow
def test_the_policy_stops_what_the_page_would_not_do_itself(browser: Browser, binary: Path) -> None:
    shown(browser, binary)
    asked = browser.value("fetch('https://example.org/').then(() => 'asked', () => 'stopped')")
    assert asked == "stopped"
    browser.value(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.planted = 1'; "
        "document.head.append(s); })()"
    )
    assert browser.value("window.planted === undefined")
    assert not [one for one in browser.requests if one.startswith("http")]


@pytest.mark.slow
def test_names_of_files_do_not_become_markup(browser: Browser, binary: Path) -> None:
    shown(browser, binary)
    assert names(browser).count(EVIL) == 2
    assert browser.value("document.querySelectorAll('img').length") == 0
    browser.press("End")
    for _ in range(2):
        browser.press("k")
    assert text(browser, "title") == EVIL
    assert "</script" not in (binary / "list.js").read_text()


@pytest.mark.slow
def test_keys_move_through_list_and_image(browser: Browser, binary: Path) -> None:
    shown(browser, binary)
    for key, number in (("ArrowDown", 1), ("j", 2), ("ArrowUp", 1), ("k", 0), ("k", 0)):
        browser.press(key)
        assert text(browser, "title") == f"folder/IM-000{number}.dcm"
        selected = "[...document.querySelectorAll('#rows tr[aria-selected=true]')].map((one) => one.rowIndex)"
        assert browser.value(selected) == [number + 1]
        assert browser.value("document.activeElement.rowIndex") == number + 1
    assert "1 of 7: folder/IM-0000.dcm. positive 0.300" in text(browser, "spoken")
    browser.until("document.getElementById('told').textContent.length > 5")
    browser.press("Enter")
    assert browser.value("document.activeElement.id") == "stage"
    before = text(browser, "levelText")
    browser.press("ArrowUp", shift=True)
    assert (before, text(browser, "levelText")) == ("50 %", "60 %")
    browser.press("ArrowLeft", shift=True)
    assert text(browser, "widthText") == "90 %"
    browser.press("r")
    assert (text(browser, "levelText"), text(browser, "widthText")) == ("50 %", "100 %")
    browser.press("j")
    assert text(browser, "title") == "folder/IM-0001.dcm"
    browser.press("Escape")
    assert browser.value("document.activeElement.rowIndex") == 2
    browser.press("End")
    assert "Not read: 30 files" in text(browser, "alarms")
    assert "--override other-modality" in text(browser, "alarms")
    assert browser.value("document.getElementById('viewer').hidden")


@pytest.mark.slow
def test_every_control_is_reached_with_the_tab_key_and_its_focus_is_seen(
    browser: Browser, binary: Path
) -> None:
    shown(browser, binary)
    browser.value("(() => { document.body.tabIndex = -1; document.body.focus(); })()")
    reached = []
    for _ in range(16):
        browser.press("Tab")
        focused = browser.value(
            "(() => { const one = document.activeElement; const s = getComputedStyle(one); return "
            "[one.id || one.dataset.key || one.tagName, s.outlineStyle, parseFloat(s.outlineWidth)]; })()"
        )
        if focused[0] == "BODY":
            break
        assert focused[1] != "none" and focused[2] >= 2, focused
        reached.append(focused[0])
    wanted = [
        "filter",
        "search",
        "name",
        "0",
        "TR",
        "stage",
        "level",
        "width",
        "overlay",
        "map",
        "opacity",
        "reset",
        "A",
    ]
    assert [one for one in reached if one in wanted] == wanted
    unnamed = browser.value(
        "[...document.querySelectorAll('input, select, button, canvas, [tabindex]')].filter((one) => !one.hidden && "
        "!(one.labels?.length || one.getAttribute('aria-label') || one.textContent.trim())).map((one) => one.id)"
    )
    assert unnamed == []


@pytest.mark.slow
def test_the_window_changes_greys_and_the_mouse_changes_the_window(browser: Browser, binary: Path) -> None:
    shown(browser, binary)
    browser.press("o")
    expected = 0.9
    at = (5.5 / 24, 13.5 / 24)
    assert pixel(browser, *at)[0] == pytest.approx(255 * expected, abs=3)
    box = browser.value(
        "(() => { const b = document.getElementById('stage').getBoundingClientRect(); return [b.x, b.y]; })()"
    )
    start = (box[0] + 100, box[1] + 100)
    browser.drag(start, (start[0] - 160, start[1] - 120))
    assert (text(browser, "levelText"), text(browser, "widthText")) == ("80 %", "60 %")
    assert pixel(browser, *at)[0] == pytest.approx(255 * (expected - 0.5) / 0.6, abs=3)


@pytest.mark.slow
def test_the_overlay_shows_is_switched_and_made_paler(browser: Browser, binary: Path) -> None:
    shown(browser, binary)
    at = (5.5 / 24, 13.5 / 24)
    with_map = pixel(browser, *at)
    assert with_map[:3] == pytest.approx(0.25 * 255 * 0.9 + 0.75 * colour_table()[255].astype(float), abs=12)
    assert "Largest of this image: 2.00" in text(browser, "meaning")
    assert text(browser, "end") == "2.00"
    put(browser, "opacity", 0.5)
    paler = pixel(browser, *at)
    browser.press("o")
    without = pixel(browser, *at)
    assert without[0] == without[1] == without[2]
    assert abs(with_map[2] - without[2]) > abs(paler[2] - without[2]) > 10
    browser.press("o")
    put(browser, "map", 1, "change")
    assert pixel(browser, *at)[2] == pytest.approx(without[2], abs=3)


@pytest.mark.slow
def test_the_list_is_sorted_and_filtered(browser: Browser, binary: Path) -> None:
    shown(browser, binary)
    browser.value("document.querySelector('[data-key=\"0\"]').click()")
    assert names(browser)[:3] == [EVIL, "folder/IM-0001.dcm", "folder/IM-0003.dcm"]
    assert browser.value("document.querySelector('[data-key=\"0\"]').closest('th').ariaSort") == "descending"

    def choose(value: str) -> list[str]:
        browser.value(
            f"(() => {{ const f = document.getElementById('filter'); f.value = '{value}'; "
            "f.dispatchEvent(new Event('change')); })()"
        )
        return names(browser)

    assert choose("reached:0") == [EVIL, "folder/IM-0001.dcm", "folder/IM-0003.dcm"]
    assert choose("below:0") == ["folder/IM-0000.dcm", "folder/IM-0002.dcm"]
    assert choose("overridden") == [EVIL]
    assert choose("unread") == [EVIL, "mr"]
    assert text(browser, "count") == "2 of 7 inputs"


@pytest.mark.slow
def test_an_override_is_told_before_the_image_and_stays_an_alarm(browser: Browser, binary: Path) -> None:
    shown(browser, binary)
    for _ in range(4):
        browser.press("j")
    assert "Its modality is MG; the model was trained on CR." in text(browser, "alarms")
    above = browser.value(
        "document.getElementById('alarms').getBoundingClientRect().bottom <= "
        "document.getElementById('stage').getBoundingClientRect().top"
    )
    assert above


CONTRAST = """(() => {
  const parse = (colour) => {
    const n = colour.match(/[\\d.]+/g).map(Number);
    return n.length === 3 ? [...n, 1] : n;
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    for (let each = one; each; each = each.parentElement) {
      const found = parse(getComputedStyle(each).backgroundColor);
      if (found[3] === 1) return found;
    }
    return [255, 255, 255, 1];
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const one = walk.currentNode.parentElement;
    const words = walk.currentNode.textContent.trim();
    if (!words || !one.checkVisibility() || ["SCRIPT", "NOSCRIPT"].includes(one.tagName)) continue;
    found.push([ratio(parse(getComputedStyle(one).color), behind(one)), words]);
  }
  for (const one of document.querySelectorAll("input[type=search], select, button.act")) {
    if (!one.checkVisibility()) continue;
    const border = ratio(parse(getComputedStyle(one).borderTopColor), behind(one.parentElement));
    found.push([1.5 * border, `border of ${one.id}`]);
  }
  return found;
})()"""


@pytest.mark.slow
def test_every_text_has_the_contrast_that_wcag_asks_for(browser: Browser, binary: Path) -> None:
    """WCAG 2.2, 1.4.3 (4.5 to 1 of text, as it is painted) and 1.4.11 (3 to 1 of borders and the focus ring)."""
    shown(browser, binary)
    seen = set()
    for _ in range(7):
        for ratio, words in browser.value(CONTRAST):
            assert ratio >= 4.5, (ratio, words)
            seen.add(words)
        browser.press("j")
    assert {"not read", "overridden", "reached", "not reached", "youden", "border of filter"} <= seen
    assert len(seen) > 40


@pytest.mark.slow
def test_the_measure_of_contrast_finds_pale_text(browser: Browser, binary: Path) -> None:
    shown(browser, binary)
    browser.value("document.getElementById('told').style.color = '#9ca3af'")
    assert min(ratio for ratio, _ in browser.value(CONTRAST)) < 3.0


@pytest.mark.slow
def test_contours_of_structures_and_what_several_models_disagree_on(browser: Browser, tmp_path: Path) -> None:
    study = make_study({ONE_QUESTION: SEGMENTATION, 'architecture = "small-cnn"': 'architecture = "unet"'})
    page = Page(tmp_path / "out", [trained(study), trained(study)], now=NOW)
    mask = np.zeros((24, 24), dtype=np.uint8)
    mask[2:12, 2:12], mask[14:20, 14:20] = 1, 2
    spreads = {name: Spread(deviation=0.02, low=0.9, high=0.98) for name in ("lung", "heart")}
    page.write(
        reading(1, 0.0, probabilities={"lung": 0.95, "heart": 0.94}, points=(), mask=mask, spreads=spreads)
    )
    page.finish()
    shown(browser, tmp_path / "out")
    assert pixel(browser, 2.1 / 24, 6.5 / 24)[:3] == [230, 159, 0]
    assert pixel(browser, 14.1 / 24, 16.5 / 24)[:3] == [86, 180, 233]
    inside = pixel(browser, 6.5 / 24, 6.5 / 24)
    assert inside[0] == inside[1] == inside[2]
    assert "0.900 to 0.980, deviation 0.020" in text(browser, "probabilities")
    assert not browser.complaints


@pytest.mark.slow
def test_a_volume_begins_where_its_map_is_largest_and_goes_slice_by_slice(
    browser: Browser, tmp_path: Path
) -> None:
    model = trained(volume_study())
    page = Page(tmp_path / "out", [model], now=NOW)
    values = np.zeros((9, 16, 16), dtype=np.float32)
    values[6, 4, 4] = 3.0
    prepared = np.broadcast_to(np.linspace(0.1, 0.9, 9, dtype=np.float32)[:, None, None], values.shape)[None]
    attribution = Attribution(method=Method.OCCLUSION, output="positive", values=values)
    page.write(reading(1, 0.7, prepared=prepared), [attribution])
    page.finish()
    shown(browser, tmp_path / "out")
    assert text(browser, "sliceText") == "7 of 9"
    assert pixel(browser, 0.8, 0.8)[0] == pytest.approx(255 * prepared[0, 6, 0, 0], abs=2)
    browser.press("Enter")
    browser.press("PageUp")
    assert text(browser, "sliceText") == "6 of 9"
    assert pixel(browser, 0.8, 0.8)[0] == pytest.approx(255 * prepared[0, 5, 0, 0], abs=2)
    assert text(browser, "widthText").endswith(" HU")
    assert not browser.complaints


@pytest.mark.slow
def test_a_colour_image_has_no_window(browser: Browser, tmp_path: Path) -> None:
    study = make_study({ONE_QUESTION: THREE_CLASSES, "channels = 1": "channels = 3"})
    page = Page(tmp_path / "out", [trained(study)], now=NOW)
    prepared = np.broadcast_to(np.array([0.8, 0.5, 0.4], dtype=np.float32)[:, None, None], (3, 16, 16))
    page.write(
        reading(
            1,
            0.0,
            prepared=prepared,
            probabilities={"clear lungs": 0.2, "opacity": 0.5, "mass": 0.3},
            points=(),
            statements={},
        )
    )
    page.finish()
    shown(browser, tmp_path / "out")
    assert pixel(browser, 0.5, 0.5)[:3] == [204, 128, 102]
    assert browser.value("document.getElementById('window').hidden")
    browser.press("Enter")
    browser.press("ArrowUp")
    assert pixel(browser, 0.5, 0.5)[:3] == [204, 128, 102]


@pytest.mark.slow
def test_a_thousand_images_are_loaded_one_by_one(browser: Browser, tmp_path: Path) -> None:
    page = Page(tmp_path / "out", [trained(make_study())], now=NOW)
    for number in range(1000):
        page.write(reading(number, (number % 100) / 100))
    page.finish()
    shown(browser, tmp_path / "out")
    assert len(names(browser)) == 1000
    browser.press("End")
    assert text(browser, "title") == "folder/IM-0999.dcm"
    browser.until("document.getElementById('canvas').getAttribute('aria-label').startsWith('folder/IM-0999')")
    loaded = [one for one in browser.requests if "/images/" in one]
    assert len(loaded) <= 4
    assert json.dumps(loaded).count("/images/1000.js") == 1


@pytest.mark.slow
def test_an_image_that_is_missing_is_told_in_a_sentence(browser: Browser, tmp_path: Path) -> None:
    page = Page(tmp_path / "out", [trained(make_study())], now=NOW)
    page.write(reading(0, 0.5))
    page.finish()
    (tmp_path / "out" / "images" / "1.js").unlink()
    shown(browser, tmp_path / "out")
    assert "is missing or damaged" in text(browser, "told")
