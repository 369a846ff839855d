"""The last confirmation of each site, given back to it when a run opens.

A hospital whose disk was put back to an older copy, by a restored snapshot for instance, has forgotten what its
patients have spent since then. Its own signature on a later head of its journal tells it so. The server is only the
messenger: it cannot forge one, and a site that is shown none is no worse off than without.
"""

import logging
from pathlib import Path

from privacy.secure_aggregation.receipts import Receipt
from server.checkpoint import write_atomically

log = logging.getLogger("collegium.server")


class Receipts:
    """Keeps one receipt for each site.

    Args:
        folder: where, one file a site; without it they are kept in memory only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._kept: dict[str, bytes] = {}

    def keep(self, receipt: Receipt) -> None:
        """Remember it in place of the site's earlier one. A disk that is full costs no round."""
        self._kept[receipt.site] = receipt.to_bytes()
        if self._folder is None:
            return
        try:
            write_atomically(self._folder / receipt.site, receipt.to_bytes())
        except OSError:
            log.exception("the receipt of %s cannot be written", receipt.site)

    def of(self, site: str) -> bytes:
        """The site's last receipt, encoded; empty where there is none."""
        if site not in self._kept and self._folder is not None:
            try:
                self._kept[site] = (self._folder / site).read_bytes()
            except OSError:
                return b""
        return self._kept.get(site, b"")
