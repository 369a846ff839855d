"""A site's images as its studies want them, read once for each study and set of withdrawn patients."""

import logging
import time
from collections.abc import Callable, Collection, Mapping

from client.data_floor import check_floors
from client.dicom_index import Index
from client.ingestion import Ingested, ingest
from client.patients import PatientSet
from client.roles import Role
from client.secret import SiteSecret
from client.site_file import SiteFile
from shared_models.study import Study

log = logging.getLogger("collegium.site")

_LINE_SECONDS = 30.0


class ProgressLines:
    """Says every half minute how far the reading of images has come: files done, rate and remaining time.

    Args:
        say: gets a line.
        clock: seconds.
    """

    def __init__(
        self, say: Callable[[str], None] = log.info, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._clock = say, clock
        self._begun = self._said = clock()

    def __call__(self, done: int, total: int) -> None:
        """Take in how many files are done."""
        now = self._clock()
        if now - self._said < _LINE_SECONDS or done == 0:
            return
        self._said = now
        rate = done / (now - self._begun)
        minutes = (total - done) / rate / 60
        self._say(f"reading images: {done} of {total} files, {rate:.0f} a second, {minutes:.0f} min left")


class SiteData:
    """Reads and keeps the data of the study that was asked for last.

    Args:
        site_file: says where images and labels are, and what the policy wants of them.
        secret: makes pseudonyms and roles.
    """

    def __init__(self, site_file: SiteFile, secret: SiteSecret) -> None:
        self._file, self._secret = site_file, secret
        self._kept: tuple[str, frozenset[str], Ingested] | None = None

    def read(self, study: Study, withdrawn: Collection[str]) -> tuple[Index, Mapping[Role, PatientSet]]:
        """Return index and patients.

        Raises:
            DataRefused: they are below the floor of the study or of the site's policy, or cannot be read.
            LabelsError: the labels file cannot be used.
        """
        gone = frozenset(withdrawn)
        kept, self._kept = self._kept, None
        if kept is None or kept[:2] != (study.hash, gone):
            ingested = ingest(self._file, study, self._secret, withdrawn=gone, progress=ProgressLines())
            kept = (study.hash, gone, ingested)
        index, patients = kept[2].index, kept[2].patients
        check_floors(index, study, self._file.policy)
        self._kept = kept
        return index, patients
