"""Whether the hospital's PACS answers this site. Nothing is asked about any patient."""

import warnings

from client.fetch_reasons import NotFetched
from client.pacs_file import DicomWeb, Dimse, Pacs
from shared_models.checkup import Outcome, Wrong, ok
from shared_models.configuration import ConfigurationError

MOST_SECONDS = 15.0


def check_pacs(pacs: Pacs) -> Outcome:
    """Say hello to the PACS: by C-ECHO, or by a query for a study that nobody has. Raises Wrong."""
    quick = pacs.model_copy(update={"timeout_seconds": min(pacs.timeout_seconds, MOST_SECONDS)})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's quote what the PACS sends
            return _by_dimse(quick, quick.dimse) if quick.dimse else _by_web(quick, quick.dicomweb)
    except ConfigurationError as error:
        raise Wrong(str(error)) from error
    except NotFetched as error:
        detail = f" {error.detail}" if error.detail else ""
        raise Wrong(f"{_where(pacs)}: {error.outcome.sentence}{detail} {error.outcome.remedy}") from error


def _by_dimse(pacs: Pacs, service: Dimse) -> Outcome:
    from client.pacs_dimse import DimseConnection, dimse_access

    with dimse_access(pacs, service) as access:
        connection = DimseConnection(access)
        try:
            lacking = connection.ping()
        finally:
            connection.close()
    if lacking:
        other = "move" if service.retrieve == "get" else "get"
        raise Wrong(
            f"{_where(pacs)} answers, but does not offer {', '.join(sorted(lacking))} to this site: have the PACS team "
            f'allow it, or try pacs.dimse.retrieve = "{other}"'
        )
    told = f"{_where(pacs)} answers to {service.calling_ae_title}"
    return ok(told if service.tls else f"{told}, without encryption")


def _by_web(pacs: Pacs, service: DicomWeb | None) -> Outcome:
    from client.pacs_web import WebConnection, web_access

    if service is None:
        raise RuntimeError("[pacs] has one of the two")
    connection = WebConnection(web_access(pacs, service))
    try:
        connection.ping()
    finally:
        connection.close()
    if not service.encrypted:
        return ok(f"{_where(pacs)} answers, without encryption")
    return ok(f"{_where(pacs)} answers")


def _where(pacs: Pacs) -> str:
    if pacs.dimse is not None:
        return f"{pacs.dimse.called_ae_title} at {pacs.dimse.host}:{pacs.dimse.port}"
    return pacs.dicomweb.url if pacs.dicomweb is not None else ""
