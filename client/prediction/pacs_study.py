"""Studies of the hospital's PACS, brought into a private folder for as long as they are read."""

import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from client.dicom_file import identifiers_of, opened, read_header
from client.fetch_limits import Hours
from client.fetch_record import FetchRecord
from client.fetch_run import Fetch, FetchOptions, Tally, pace_of, withdrawn_by
from client.fetch_store import MIB, ImageStore
from client.pacs import pacs_connections
from client.pacs_file import Pacs
from client.pacs_query import Wanted, is_accession, is_uid
from client.prediction.inputs import Input
from client.prediction.reading import Unread
from client.quiet_libraries import quiet_threads
from client.secret import NUM_SECRET_BYTES, SecretError, SiteSecret
from client.site_file import SiteFile, read_site
from client.site_journal import read_journal
from client.withdrawal import withdrawn
from shared_models.configuration import ConfigurationError
from shared_models.processes import private_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedStudies:
    """The images that came, by SOP Instance UID, and what did not come."""

    inputs: tuple[Input, ...] = field(default=(), repr=False)
    unread: tuple[Unread, ...] = ()


@contextmanager
def studies_in_pacs(
    config: Path, accessions: Sequence[str], studies: Sequence[str], *, modalities: Sequence[str]
) -> Iterator[FetchedStudies]:
    """Bring studies, as ``collegium-client fetch`` does, into a folder that is removed at the end.

    Nothing of it is written into the images folder or into the record of fetches. Hours and pace of ``[pacs]`` are
    kept, and patients who withdrew are not fetched.

    Args:
        config: the site's file; it is not read where nothing is wanted.
        accessions: accession numbers.
        studies: Study Instance UIDs.
        modalities: of series that are wanted; none: any.

    Raises:
        ConfigurationError: the site has no ``[pacs]``, or what is asked for is no accession number or UID.
    """
    if not (accessions or studies):
        yield FetchedStudies()
        return
    if not all(map(is_accession, accessions)):
        raise ConfigurationError("--accession: is no accession number: 1 to 64 characters without * ? \\")
    if not all(map(is_uid, studies)):
        raise ConfigurationError("--study-uid: is no Study Instance UID: digits and full stops, 64 at most")
    site = read_site(config)
    if site.pacs is None:
        raise ConfigurationError(
            f"{config}: has no [pacs]; add it to read a study in a PACS, see docs/pacs.md"
        )
    wanted = Wanted(accessions=tuple(accessions), studies=tuple(studies), modalities=tuple(modalities))
    with tempfile.TemporaryDirectory(dir=private_folder(site.state), prefix="predict-") as name:
        folder = Path(name)
        with quiet_threads():
            tally = _fetched(site, site.pacs, wanted, folder)
        yield FetchedStudies(inputs=tuple(_inputs(folder)), unread=tuple(_unread(tally)))


def _fetched(site: SiteFile, pacs: Pacs, wanted: Wanted, folder: Path) -> Tally:
    try:
        secret = SiteSecret.load(site.state)
    except SecretError as error:
        raise ConfigurationError(str(error)) from error
    pace = pace_of(pacs.studies_per_minute, pacs.max_mib_per_second)
    store = ImageStore(
        folder,
        SiteSecret(key=secrets.token_bytes(NUM_SECRET_BYTES)),  # its names mean nothing outside this folder
        min_free_bytes=pacs.min_free_mib * MIB,
        max_object_bytes=pacs.max_object_mib * MIB,
        received=pace.received,
    )
    options = FetchOptions(
        connections=1,
        attempts=pacs.attempts,
        backoff_seconds=pacs.backoff_seconds,
        hours=None if pacs.hours is None else Hours.of(pacs.hours),
        wait=False,
    )
    gone = withdrawn(read_journal(site))
    with pacs_connections(pacs) as connect:
        return Fetch(
            wanted,
            options,
            connect=connect,
            store=store,
            record=FetchRecord(folder),
            pace=pace,
            is_withdrawn=withdrawn_by(gone, lambda patient: secret.pseudonym("patient", patient)),
        ).run()


def _inputs(folder: Path) -> Iterator[Input]:
    """Files by SOP Instance UID, by which the hospital finds them in its PACS; the store checked each header."""
    found = list[Input]()
    for path in folder.rglob("*.dcm"):
        with opened(path) as file:
            found.append(Input(name=identifiers_of(read_header(file)).SOPInstanceUID, path=path))
    yield from sorted(found, key=lambda one: [int(part) for part in one.name.split(".") if part.isdigit()])


def _unread(tally: Tally) -> Iterator[Unread]:
    outcomes = [
        (outcome, number)
        for outcome, number in tally.outcomes.items()
        if not outcome.settled or outcome.code in ("not-wanted", "withdrawn")
    ]
    if tally.stopped is not None and all(outcome is not tally.stopped.outcome for outcome, _ in outcomes):
        outcomes.append((tally.stopped.outcome, 1))
    for outcome, number in outcomes:
        yield from (
            Unread(name="(in the PACS)", code=outcome.code, sentence=f"{outcome.sentence} {outcome.remedy}")
            for _ in range(number)
        )
