"""A site's images as its studies want them, read once for each study and set of withdrawn patients."""

from collections.abc import Collection, Mapping

from client.dicom_index import Index
from client.ingestion import DataRefused, Ingested, check_policy, ingest
from client.patients import PatientSet
from client.roles import Role
from client.secret import SiteSecret
from client.site_file import SiteFile
from shared_models.study import Study


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
            DataRefused: they are not fit for the study, or the policy does not let them train.
            LabelsError: the labels file cannot be used.
        """
        gone = frozenset(withdrawn)
        kept, self._kept = self._kept, None
        if kept is None or kept[:2] != (study.hash, gone):
            kept = (study.hash, gone, ingest(self._file, study, self._secret, withdrawn=gone))
        index, patients = kept[2].index, kept[2].patients
        check_policy(index, self._file.policy)
        num, needed = len(patients[Role.TRAIN]), study.patients.min_training
        if num < needed:
            raise DataRefused(f"{num} training patients, the study asks for at least {needed}")
        self._kept = kept
        return index, patients
