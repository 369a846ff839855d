"""``collegium-client index``: tables, a page, JSON for scripts, and whether the site would train."""

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from dicom_files import NAME, dataset, write
from studies import study_text
from test_client_review_command import BASE
from typer.testing import CliRunner

from client.command import app
from client.index_page import PAGE_NAME
from client.membership import make_keys
from client.secret import SiteSecret
from client.site_file import read_site
from client.site_journal import make_journal
from shared_models.identity_keys import read_identity_key


class Site:
    """A site with fifteen patients, which has joined nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config, self.study = folder, folder / "site.toml", folder / "study.toml"
        self.config.write_text(BASE)
        make_keys(folder, "north")
        self.file = read_site(self.config)
        SiteSecret.create(self.file.state, random_bytes=bytes)  # roles are drawn by it: the same in each run
        make_journal(self.file, read_identity_key(folder / "identity.key"))
        rows = ["PatientID,finding"]
        for number in range(15):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16)).astype(np.uint8)
            made = dataset(pixels, patient=f"MRN-{number}", Manufacturer="Maker", ManufacturerModelName="One")
            write(folder / "images" / f"{number}.dcm", made)
            rows.append(f"MRN-{number},{'opacity' if number % 2 else 'clear'}")
        (folder / "labels.csv").write_text("\n".join(rows) + "\n")
        self.asks("")

    def asks(self, quality: str) -> None:
        """Write the study with these lines of [quality]."""
        self.study.write_text(study_text() + f"\n[quality]\n{quality}\n")

    def index(self, *arguments: str) -> Result:
        command = ["index", "--config", str(self.config), "--study", str(self.study), *arguments]
        return CliRunner().invoke(app, command, env={"COLUMNS": "200"})

    @property
    def page(self) -> Path:
        return self.file.state / PAGE_NAME


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.slow
def test_the_command_prints_tables_and_leaves_a_page(site: Site) -> None:
    done = site.index()
    assert done.exit_code == 0, done.output
    assert "15 of 15 files are used" in done.output
    assert "Maker One" in done.output
    assert str(site.page) in done.output.replace("\n", "")
    page = site.page.read_text(encoding="utf-8")
    assert "With these images the site would train" in page
    assert page.count("data:image/png;base64,") == 8, "four of each class, unless site.toml says otherwise"
    assert stat.S_IMODE(site.page.stat().st_mode) == 0o600
    told = done.output + page
    assert not [word for word in ("MRN-", *NAME.split("^"), "ACC-") if word in told]


@pytest.mark.slow
def test_below_the_studys_floor_the_command_says_so_and_strict_ends_with_1(site: Site) -> None:
    site.asks("min_patients_per_class = 14")
    done = site.index()
    assert done.exit_code == 0
    assert done.output.count("This site would refuse to train") == 2
    assert "the site does not train" in site.page.read_text(encoding="utf-8")
    assert site.index("--strict").exit_code == 1
    site.asks("min_patients_per_class = 1")
    assert site.index("--strict").exit_code == 0


@pytest.mark.slow
def test_the_page_goes_where_it_is_wanted_and_a_site_may_want_no_images_on_it(site: Site) -> None:
    site.config.write_text(BASE + "[quality]\nthumbnails = 0\n")
    wanted = site.folder / "elsewhere" / "page.html"
    assert site.index("--report", str(wanted)).exit_code == 0
    assert not site.page.exists()
    assert "data:image" not in wanted.read_text(encoding="utf-8")
    assert stat.S_IMODE(wanted.stat().st_mode) == 0o600
    (site.folder / "file").write_text("")
    done = site.index("--report", str(site.folder / "file" / "page.html"))
    assert done.exit_code != 0
    assert "see --report" in str(done.exception)


@pytest.mark.slow
def test_scripts_get_the_same_counts(site: Site) -> None:
    site.asks("min_patients_per_class = 14")
    values = json.loads(site.index("--json").stdout)
    assert values["scanners"] == {"Maker One": {"used": 15, "left_out": {}}}
    assert values["identifying"] == {"patient": 15, "identifiers": 15}
    assert "quality.min_patients_per_class asks for 14" in values["refused"]


@pytest.mark.slow
def test_once_a_patient_withdraws_no_page_shows_an_image_of_before(site: Site) -> None:
    site.index()
    done = CliRunner().invoke(app, ["withdraw", "--config", str(site.config)], input="MRN-3\n")
    assert done.exit_code == 0, done.output
    assert not site.page.exists()
    assert "was deleted" in done.output
    site.index()
    again = CliRunner().invoke(app, ["withdraw", "--config", str(site.config)], input="MRN-3\n")
    assert again.exit_code == 0
    assert site.page.exists(), "who had withdrawn before is on no page"
