"""The seam between the round loop and whatever carries messages to the sites."""

from collections.abc import Callable, Iterator, Mapping
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

    def exchange(
        self,
        requests: Mapping[str, bytes],
        *,
        timeout_seconds: float,
        enough: int | None = None,
        grace_seconds: float = 0.0,
    ) -> Iterator[SiteReply]:
        """Send each site its request and yield each reply once, as it arrives.

        A site that is gone, or does not answer within ``timeout_seconds``, is simply absent from the replies; a
        reply that arrives later is thrown away. After ``enough`` replies the others have ``grace_seconds`` at most.
        Sending the same ``bytes`` object to several sites is cheap.

        Raises:
            ExchangeError: the carrier failed as a whole.
        """
        ...


class Deadline:
    """When an exchange is over: at its timeout, or some grace after enough replies.

    Args:
        clock: seconds that only grow.
        timeout_seconds, enough, grace_seconds: as in `Exchange.exchange`.
    """

    def __init__(
        self, clock: Callable[[], float], *, timeout_seconds: float, enough: int | None, grace_seconds: float
    ) -> None:
        self._clock = clock
        self._at = clock() + timeout_seconds
        self._enough = enough
        self._grace_seconds = grace_seconds
        self._replies = 0

    def replied(self) -> None:
        """A reply is here."""
        self._replies += 1
        if self._replies == self._enough:
            self._at = min(self._at, self._clock() + self._grace_seconds)

    @property
    def remaining(self) -> float:
        """Seconds that are left; not above zero once it is over."""
        return self._at - self._clock()
