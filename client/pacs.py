"""The hospital's PACS, by whichever protocol ``site.toml`` names."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from client.pacs_file import Pacs
from client.pacs_query import PacsConnection


@contextmanager
def pacs_connections(pacs: Pacs) -> Iterator[Callable[[], PacsConnection]]:
    """What makes connections to the PACS, for as long as the context lasts. Raises ConfigurationError."""
    if pacs.dimse is not None:
        from client.pacs_dimse import DimseConnection, dimse_access

        with dimse_access(pacs, pacs.dimse) as access:
            yield lambda: DimseConnection(access)
    elif pacs.dicomweb is not None:
        from client.pacs_web import WebConnection, web_access

        web = web_access(pacs, pacs.dicomweb)
        yield lambda: WebConnection(web)
    else:
        raise RuntimeError("[pacs] has one of the two")
