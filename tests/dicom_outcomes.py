"""What becomes of every file of the public corpora: the table in ``dicom_outcomes.csv``.

Written anew, on purpose, by ``python tests/dicom_outcomes.py`` with ``COLLEGIUM_DATA`` set; then read the difference.
"""

import csv
import hashlib
import os
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from pydicom.uid import HTJ2K, JPEG2000, JPEGBaseline8Bit, JPEGExtended12Bit

from client.decoding import DecodingWorker
from client.dicom_file import Unusable
from client.dicom_image import decode, read_image
from client.frames import chosen_frame
from client.reasons import Reason
from shared_models.study import Image

TABLE = Path(__file__).with_name("dicom_outcomes.csv")
LOSSY = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000, HTJ2K}
"""Decoders of these calculate in a way that may differ by processor and version: means are compared, not bits."""
MODALITIES = (
    *(
        "CR",
        "DX",
        "CT",
        "MR",
        "US",
        "OT",
        "XA",
        "RF",
        "MG",
        "NM",
        "ES",
        "XC",
        "PT",
        "IO",
        "OPT",
        "SEG",
        "SC",
        "OP",
    ),
    "",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One file: a shape and digest of stored values for an image, or the code of a reason."""

    path: str
    outcome: str
    shape: str = ""
    pixels: str = ""


def folder() -> Path:
    """The corpora."""
    return Path(os.environ["COLLEGIUM_DATA"]) / "dicom"


def corpus() -> list[Path]:
    """Every file of the corpora."""
    return sorted(path for path in folder().rglob("*") if path.is_file())


def wanted(channels: int) -> Image:
    """A study that takes whatever there is."""
    return Image(modalities=MODALITIES, channels=channels, rows=24, columns=32, frames="middle")  # type: ignore[arg-type]


def stored_values(path: Path, image: Image) -> tuple[np.ndarray, bool]:
    """The decoded values of the frame that is used, and whether they were compressed with loss."""
    dataset = read_image(path, image)
    return decode(dataset, chosen_frame(dataset, image)), dataset.file_meta.TransferSyntaxUID in LOSSY


def outcome(path: Path, worker: DecodingWorker) -> Outcome:
    """Prepare one file, in grey or else in colour."""
    name = path.relative_to(folder()).as_posix()
    for channels in (1, 3):
        try:
            prepared = worker.prepare(path, wanted(channels)).plane
        except Unusable as finding:
            reason = finding.reason
            if reason is Reason.CHANNEL_MISMATCH and channels == 1:
                continue
            return Outcome(path=name, outcome=reason.code)
        assert prepared.shape == (channels, 24, 32)
        values, lossy = stored_values(path, wanted(channels))
        little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        digest = f"mean {values.mean():.1f}" if lossy else hashlib.sha256(little.tobytes()).hexdigest()[:16]
        shape = "x".join(str(number) for number in values.shape)
        return Outcome(path=name, outcome="image", shape=f"{shape} {values.dtype.name}", pixels=digest)
    raise AssertionError("neither grey nor colour")


def read_table() -> list[Outcome]:
    """The committed table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [Outcome(**row) for row in csv.DictReader(file)]


def write_table() -> None:
    """Write the table anew."""
    with DecodingWorker() as worker, TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Outcome)], lineterminator="\n")
        writer.writeheader()
        for path in corpus():
            writer.writerow(asdict(outcome(path, worker)))


if __name__ == "__main__":
    if "COLLEGIUM_DATA" not in os.environ:
        sys.exit("set COLLEGIUM_DATA to the folder of the data sets")
    write_table()
