"""The seam between the round loop and whatever carries messages to the sites."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReply:
    """The bytes that one site answered. ``site`` is known from the roster, not from the message."""

    site: str
    message: bytes


class ExchangeError(RuntimeError):
    """The carrier itself failed (not one site): the run cannot go on and can be resumed later."""


class Exchange(Protocol):
    """One request to each site of a cohort, and the replies as they arrive.

    Implementations: Flower (`server.flower_exchange`), worker processes (`simulations.local_exchange`).
    """

    def known_sites(self) -> tuple[str, ...]:
        """Names of all sites of the consortium, reachable or not, sorted."""
        ...

    def sites(self) -> tuple[str, ...]:
        """Names of the sites that are reachable now, sorted."""
        ...

    def exchange(self, requests: Mapping[str, bytes], *, timeout_seconds: float) -> Iterator[SiteReply]:
        """Send each site its request and yield each reply once, as it arrives.

        A site that is gone, or does not answer within ``timeout_seconds``, is simply absent from the replies; a
        reply that arrives later is thrown away. Sending the same ``bytes`` object to several sites is cheap.

        Raises:
            ExchangeError: the carrier failed as a whole.
        """
        ...
