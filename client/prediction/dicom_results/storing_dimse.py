"""Storing by DIMSE: C-STORE over one association (PS3.4 annex B, PS3.7 section 9.1.1)."""

import time
from collections.abc import Collection
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from client.fetch_reasons import NotFetched
from client.pacs_dimse import DimseAccess, associate, leave
from client.prediction.dicom_results.storing_outcomes import NotStored, Storing, refused_with

_SYNTAXES: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_WARNINGS = (0xB000, 0xB006, 0xB007)


class DimseStore:
    """One association, made when it is needed.

    Args:
        access: to the PACS.
        classes: SOP classes of the files that are to be stored.
    """

    def __init__(self, access: DimseAccess, classes: Collection[str]) -> None:
        self._access, self._classes = access, sorted(classes)
        self._association: Association | None = None

    def store(self, path: Path, sop_class: UID) -> str:
        """Store one file. Returns what the PACS changed, as a code; nothing where it says nothing. Raises NotStored."""
        association = self._associated()
        if not any(one.abstract_syntax == sop_class for one in association.accepted_contexts):
            raise NotStored(Storing.KIND_REFUSED, f"({sop_class.name})")
        dataset, begun = dcmread(path), time.monotonic()
        try:
            status = association.send_c_store(dataset).get("Status")
        except (RuntimeError, ValueError) as error:  # the association ended, or took none of our encodings
            lost = not association.is_established
            raise NotStored(
                Storing.CONNECTION_LOST if lost else Storing.PACS_ERROR, f"({type(error).__name__})"
            ) from None
        if status is None:
            slow = time.monotonic() - begun >= 0.95 * self._access.pacs.timeout_seconds
            raise NotStored(Storing.TIMEOUT if slow else Storing.CONNECTION_LOST)
        if status in _WARNINGS:
            return f"code {status:04X}"
        if status != 0:
            raise refused_with(int(status), sop_class.name)
        return ""

    def close(self) -> None:
        """Release the association, where there is one."""
        association, self._association = self._association, None
        if association is None:
            return
        if association.is_established:
            association.release()
        leave(association)

    def _associated(self) -> Association:
        if self._association is not None and self._association.is_established:
            return self._association
        self.close()
        # With Verification, which every PACS accepts, so that one that takes no kind of ours says so kind by kind.
        contexts = [build_context(Verification), *(build_context(uid, _SYNTAXES) for uid in self._classes)]
        try:
            self._association = associate(self._access, contexts)
        except NotFetched as trouble:
            raise NotStored.of(trouble) from None
        return self._association
