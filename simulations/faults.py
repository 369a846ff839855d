"""Hospitals that vanish before, between and after exchanges, and come back: an exchange around another one."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from server.exchange import Exchange, SiteReply
from shared_models.configuration import ConfigurationError
from shared_models.messages import Confirm, Evaluate, Request, Train, Unmask, decode_request
from simulations.scenario import Fault

log = logging.getLogger("collegium.simulation")


class RestartableExchange(Exchange, Protocol):
    """An exchange whose sites can be made to forget what they have in memory."""

    def restart(self, site: str) -> None:
        """Have the site begin anew with its next request."""
        ...


class FaultyExchange:
    """Loses what the faults say; everything else goes through. It reads the requests' headers only.

    A site that is away stays among `sites`: it is silent, as one whose machine hangs, and the server finds out.

    Args:
        inner: carries the messages.
        faults: each strikes once.
    """

    def __init__(self, inner: RestartableExchange, faults: Sequence[Fault]) -> None:
        self._inner = inner
        self._faults = list(faults)
        self._away: dict[str, Fault] = {}
        self._back: dict[str, int] = {}
        self._last_round = 0

    def known_sites(self) -> tuple[str, ...]:
        """Names of all sites, sorted."""
        return self._inner.known_sites()

    def sites(self) -> tuple[str, ...]:
        """Names of the sites that are reachable in the exchange within, sorted."""
        return self._inner.sites()

    def exchange(
        self,
        requests: Mapping[str, bytes],
        *,
        timeout_seconds: float,
        enough: int | None = None,
        grace_seconds: float = 0.0,
    ) -> Iterator[SiteReply]:
        """Send the requests that are not lost and yield the replies that are not lost."""
        sent, silenced = dict[str, bytes](), set[str]()
        for site, message in requests.items():
            request, _ = decode_request(message)
            number = self._round_of(request)
            self._come_back(site, number)
            if site in self._away:
                continue
            fault = self._strike(site, request, number)
            if fault is None or fault.when == "after":
                sent[site] = message
            if fault is not None:
                silenced.add(site)
        if not sent:
            return
        for reply in self._inner.exchange(
            sent, timeout_seconds=timeout_seconds, enough=enough, grace_seconds=grace_seconds
        ):
            if reply.site not in silenced:
                yield reply

    def _round_of(self, request: Request) -> int:
        """The round of the request; outside of rounds the one that comes next."""
        if isinstance(request, Train | Evaluate | Confirm | Unmask):
            self._last_round = request.round
            return request.round
        return self._last_round + 1

    def _come_back(self, site: str, number: int) -> None:
        if site in self._away and number >= self._back[site]:
            log.info("%s is back in round %d", site, number)
            if self._away.pop(site).restart:
                self._inner.restart(site)

    def _strike(self, site: str, request: Request, number: int) -> Fault | None:
        for fault in self._faults:
            if (fault.site, fault.exchange) == (site, request.kind) and number >= fault.round:
                log.info("%s vanishes %s %s of round %d", site, fault.when, fault.exchange, number)
                self._faults.remove(fault)
                self._away[site], self._back[site] = fault, number + fault.rounds
                return fault
        return None


def check_names(faults: Sequence[Fault], hospitals: Sequence[str]) -> None:
    """Raises ConfigurationError where a fault is of a site that is none of the hospitals."""
    unknown = sorted({fault.site for fault in faults} - set(hospitals))
    if unknown:
        raise ConfigurationError(
            f"faults: no hospital is called {', '.join(unknown)}; there are {', '.join(sorted(hospitals))}"
        )
