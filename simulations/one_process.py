"""Sites in this process, behind the `Exchange` protocol: for runs that are watched."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from client.site import Site, open_site
from client.site_file import read_site
from server.exchange import SiteReply


class OneProcessExchange:
    """Runs each site's `client.site.Site` in turn. A restarted one is made anew from its files.

    Args:
        site_files: the ``site.toml`` of each site, by its name.
    """

    def __init__(self, site_files: Mapping[str, Path]) -> None:
        self._files = dict(site_files)
        self._running: dict[str, Site] = {}
        self.restarted: list[str] = []
        for name in self._files:
            self._begin(name)

    def known_sites(self) -> tuple[str, ...]:
        """Names of all sites, sorted."""
        return tuple(sorted(self._files))

    def sites(self) -> tuple[str, ...]:
        """All of them."""
        return self.known_sites()

    def restart(self, site: str) -> None:
        """Have the site begin anew: what it had in memory is lost, its files stay."""
        self.restarted.append(site)
        self._begin(site)

    def ask(self, site: str, message: bytes) -> bytes:
        """Hand one site a request and return its reply."""
        return self._running[site].handle(message)

    def exchange(
        self,
        requests: Mapping[str, bytes],
        *,
        timeout_seconds: float,
        enough: int | None = None,
        grace_seconds: float = 0.0,
    ) -> Iterator[SiteReply]:
        """Send each site its request and yield each reply; time is no matter here."""
        for site, message in requests.items():
            yield SiteReply(site=site, message=self.ask(site, message))

    def _begin(self, name: str) -> None:
        self._running[name] = open_site(read_site(self._files[name]))
