"""Small DICOM files, sites and studies made in code, for the tests of the client."""

import struct
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RTPlanStorage,
    generate_uid,
)

from client.secret import SiteSecret
from client.site_file import Consortium, Images, Labels, Policy, SiteFile
from shared_models.quality import Quality
from shared_models.study import (
    Aggregation,
    Evaluation,
    Image,
    Model,
    Patients,
    Privacy,
    Study,
    Training,
)
from shared_models.tasks.binary import BinaryTable

NAME = "Oftering^Walburga"
SECRET = SiteSecret(key=bytes(range(32)))
OTHER_SECRET = SiteSecret(key=bytes(range(1, 33)))


def uid(*names: object) -> UID:
    """A UID fixed by *names*."""
    return generate_uid(entropy_srcs=[str(name) for name in names])


def dataset(
    pixels: np.ndarray | None = None,
    *,
    patient: str = "PAT-0001",
    study: str = "1",
    image: str = "1",
    modality: str = "CR",
    bits_stored: int | None = None,
    photometric: str = "MONOCHROME2",
    **attributes: object,
) -> Dataset:
    """A computed radiograph (or what *attributes* make of it) with grey or RGB *pixels*."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = ComputedRadiographyImageStorage
    made.SOPInstanceUID = uid(patient, study, image)
    made.StudyInstanceUID = uid(patient, study)
    made.SeriesInstanceUID = uid(patient, study, "series")
    made.PatientID, made.PatientName, made.Modality = patient, NAME, modality
    made.AccessionNumber = f"ACC-{patient}-{study}"
    if pixels is not None:
        add_pixels(made, pixels, photometric=photometric, bits_stored=bits_stored)
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def add_pixels(
    made: Dataset, pixels: np.ndarray, *, photometric: str = "MONOCHROME2", bits_stored: int | None = None
) -> None:
    """Image Pixel module for integer *pixels* of shape (rows, columns) or (rows, columns, 3)."""
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.PhotometricInterpretation = photometric
    made.BitsAllocated = 8 * pixels.dtype.itemsize
    made.BitsStored = bits_stored or made.BitsAllocated
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    made["PixelData"].VR = "OB" if made.BitsAllocated == 8 else "OW"


def write(path: Path, made: Dataset) -> Path:
    """Write as DICOM Part 10."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    dcmwrite(path, made, enforce_file_format=True)
    return path


def jpeg_dataset(pixels: np.ndarray, **attributes: object) -> Dataset:
    """A photograph whose pixel data are a JPEG Baseline stream of uint8 RGB *pixels*."""
    stream = BytesIO()
    Pillow.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0)
    made = dataset(pixels, photometric="YBR_FULL_422", modality="XC", **attributes)
    made.PixelData = encapsulate([stream.getvalue()])
    made["PixelData"].VR = "OB"
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return made


def write_truncated(path: Path, made: Dataset) -> Path:
    """Write, then cut off the second half of the pixel data."""
    whole = write(path, made).read_bytes()
    path.write_bytes(whole[: len(whole) - len(made.PixelData) // 2])
    return path


def rt_plan(**attributes: object) -> Dataset:
    """An RT plan: DICOM without pixels."""
    return dataset(modality="RTPLAN", SOPClassUID=RTPlanStorage, **attributes)


def write_nested(path: Path, *, depth: int) -> Path:
    """A file whose sequences of undefined length lie in each other *depth* times."""
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    sequence = struct.pack("<HH2sHI", 0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF)
    path.write_bytes(write(path, dataset()).read_bytes() + (sequence + item) * depth)
    return path


def gradient(rows: int = 16, columns: int = 16, *, dtype: str = "uint8", high: int = 255) -> np.ndarray:
    """Grey values from 0 to *high*."""
    return np.linspace(0, high, rows * columns).round().astype(dtype).reshape(rows, columns)


def make_image(**changes: object) -> Image:
    """What the test study wants of an image: 16 × 16 grey CR, its full range."""
    values: dict[str, object] = {
        "modalities": ("CR",),
        "channels": 1,
        "rows": 16,
        "columns": 16,
        "intensity": "full-range",
    }
    return Image.model_validate({**values, **changes})


LENIENT = Quality(blank="use", shared_pixels="use", burned_in="use")
"""For tests that are not about quality, and make one picture serve for many."""


def make_study(*, roles: str = "hash", image: Image | None = None, quality: Quality = LENIENT) -> Study:
    """A small study without privacy."""
    return Study(
        name="test-study",
        title="A test",
        task=BinaryTable(
            kind="binary-classification", label="finding", positive=("yes", "1"), negative=("no", "0")
        ),
        patients=Patients(roles=roles, min_training=1, validation_fraction=0.2, test_fraction=0.2),  # type: ignore[arg-type]
        image=image or make_image(),
        quality=quality,
        model=Model(architecture="small-cnn", width=8),
        training=Training(num_rounds=1, local_steps=1, sample_rate=0.5, learning_rate=0.1),
        privacy=Privacy(mode="none"),
        evaluation=Evaluation(num_bins=10, unnoised=True),
        aggregation=Aggregation(
            weights="equal",
            num_sites_max=2,
            min_cohort=2,
            threshold=2,
            num_colluding=0,
            round_timeout_seconds=60.0,
        ),
    )


class Hospital:
    """A folder with images, a labels file and a state folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.images, self.labels = root, root / "images", root / "labels.csv"
        self.images.mkdir(parents=True)

    def add(self, name: str, made: Dataset) -> Path:
        """Write a DICOM file into the images folder."""
        return write(self.images / name, made)

    def add_patients(self, numbers: Iterable[int]) -> list[tuple[str, str]]:
        """Add one image for each patient; return their rows of a labels file."""
        rows = []
        for number in numbers:
            patient = f"PAT-{number:04d}"
            pixels = gradient()
            pixels[0, :2] = divmod(number, 256)  # no two patients have the same image
            self.add(f"{number:04d}.dcm", dataset(pixels, patient=patient))
            rows.append((patient, "yes" if number % 2 else "no"))
        return rows

    def label(self, rows: Sequence[Sequence[str]], header: Sequence[str] = ("PatientID", "finding")) -> None:
        """Write the labels file."""
        self.labels.write_text("".join(",".join(row) + "\n" for row in [header, *rows]), encoding="utf-8")

    def site(
        self, *, key: str = "PatientID", min_patients: int = 1, max_unusable_share: float = 1.0
    ) -> SiteFile:
        """The hospital's site file."""
        return SiteFile(
            name="test-site",
            state=self.root / "state",
            images=Images(folder=self.images),
            labels=Labels(file=self.labels, key=key),  # type: ignore[arg-type]
            policy=Policy(
                min_cohort=2,
                min_patients=min_patients,
                max_unusable_share=max_unusable_share,
                max_runs_per_study=1,
                min_threshold=1,
                allowed_tasks=("binary-classification",),
                allowed_architectures=("small-cnn",),
            ),
            consortium=Consortium(
                root=self.root / "root.pub",
                roster=self.root / "roster.toml",
                identity_key=self.root / "identity.key",
            ),
        )
