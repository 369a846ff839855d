"""A site with ``[pacs]``, the studies that it wants, and what its folder holds: for the tests of fetching."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from dicom_files import dataset, jpeg_dataset, uid, write
from pydicom import dcmread
from pydicom.uid import RLELossless
from toy_consortium import make_server, make_site

from client.membership import own_key
from client.site_file import read_site
from client.site_journal import make_journal

ROOT = Path(__file__).resolve().parent.parent
PATIENT, ACCESSION = "SECR", "ACC-SECR"
QUICK = "attempts = 2\nbackoff_seconds = 0.1\nstudies_per_minute = 100000.0\ntimeout_seconds = 20.0\nmin_free_mib = 1\n"


class PacsSite:
    """The site "north" that fetches."""

    def __init__(self, folder: Path, pacs: str) -> None:
        server, keys = make_server(folder / "server", ("north",))
        self.folder = folder / "north"
        self.config = make_site(self.folder, "north", server, keys["north"], ca=folder / "ca.pem")
        self.images, self.state = self.folder / "images", self.folder / "state"
        self.images.mkdir(exist_ok=True)
        (self.folder / "labels.csv").write_text("PatientID;finding\nx;yes\n", encoding="utf-8")
        self.state.mkdir(mode=0o700, exist_ok=True)
        file = read_site(self.config)
        make_journal(file, own_key(file))
        self._without = self.config.read_text(encoding="utf-8")
        self.pacs(pacs)

    def pacs(self, text: str) -> None:
        """Set ``[pacs]``."""
        self.config.write_text(f"{self._without}\n[pacs]\n{text}", encoding="utf-8")

    def listed(self, values: Iterable[str]) -> Path:
        """A file with one value a line."""
        path = self.folder / "list.txt"
        path.write_text("".join(f"{value}\n" for value in values), encoding="utf-8")
        return path

    def command(self, *options: object) -> list[str]:
        """The command line of a fetch."""
        words = ["fetch", "--config", str(self.config), "--json", *map(str, options)]
        return [sys.executable, "-m", "client.command", *words]

    def start(self, *options: object) -> subprocess.Popen[bytes]:
        """Begin a fetch in a process of its own."""
        return subprocess.Popen(
            self.command(*options),
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def fetch(self, *options: object) -> tuple[int, dict[str, object], str]:
        """Fetch; return the exit code, what was told as JSON, and everything that was printed."""
        process = self.start(*options)
        printed, told = process.communicate(timeout=280)
        text = printed.decode() + told.decode()
        try:
            return process.returncode, json.loads(printed), text
        except ValueError:
            return process.returncode, {}, text

    def record(self) -> str:
        """What the private record says."""
        return (self.state / "fetch.csv").read_text(encoding="utf-8")

    def held(self) -> dict[str, str]:
        """SOP Instance UID → digest of the data set, of every file below the images folder."""
        files = [path for path in self.images.rglob("*") if path.is_file()]
        assert all(path.suffix == ".dcm" for path in files), "nothing half written, nothing foreign"
        found = [content_of(path) for path in files]
        assert len({uid for uid, _ in found}) == len(found), "nothing doubled"
        return dict(found)


def content_of(path: Path) -> tuple[str, str]:
    """SOP Instance UID, and a digest of transfer syntax, elements and pixel data as they are encoded."""
    made = dcmread(path)
    digest = hashlib.sha256(str(made.file_meta.TransferSyntaxUID).encode())
    for element in made:
        digest.update(str(element.tag).encode())
        value = element.value if isinstance(element.value, bytes) else str(element.value).encode()
        digest.update(value)
    return str(made.SOPInstanceUID), digest.hexdigest()


def contents(paths: Sequence[Path]) -> dict[str, str]:
    """The same for files that were uploaded."""
    return dict(content_of(path) for path in paths)


def make_study(folder: Path, number: int, *, num_images: int = 3, **attributes: object) -> list[Path]:
    """Files of one study with images in three transfer syntaxes, uncompressed, RLE and JPEG."""
    patient, paths = f"{PATIENT}-{number:04d}", []
    generator = np.random.default_rng(number)
    attributes = {"StudyDate": "20240310", "PatientSex": "F", **attributes}
    for image in range(num_images):
        if image % 3 == 2:
            pixels = generator.integers(0, 255, (24, 24, 3), dtype=np.uint8)
            made = jpeg_dataset(pixels, patient=patient, image=str(image), **attributes)
            made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.4"
            made.SeriesInstanceUID = uid(patient, "photographs")
        else:
            pixels = generator.integers(0, 4095, (32, 32), dtype=np.uint16)
            made = dataset(pixels, patient=patient, image=str(image), bits_stored=12, **attributes)
            if image % 3 == 1:
                made.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        paths.append(write(folder / f"{number:04d}-{image}.dcm", made))
    return paths


def dimse(port: int, **changes: object) -> str:
    """``[pacs.dimse]`` of the archive on this port."""
    values = {"host": "127.0.0.1", "port": port, "called_ae_title": "ARCHIVE", **changes}
    return f"{QUICK}[pacs.dimse]\n" + _lines(values)


def dicomweb(url: str, **changes: object) -> str:
    """``[pacs.dicomweb]`` of this service."""
    return f"{QUICK}[pacs.dicomweb]\n" + _lines({"url": url, **changes})


def _lines(values: dict[str, object]) -> str:
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
