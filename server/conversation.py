"""Asking sites and reading what they answer: requests out, decoded replies in, each from a site known by its key."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from server.exchange import Exchange
from shared_models.messages import Answer, MessageError, Request, decode_reply, encode

log = logging.getLogger("collegium.server")

GRACE_SECONDS = 10.0
"""How long the rest is waited for once enough sites have answered a small exchange."""
NO_ANSWER = "no-answer"
BAD_REPLY = "bad-reply"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one site answered: ``payload`` where it did as asked, else ``refusal`` says why not."""

    site: str
    payload: bytes = b""
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One run's requests and replies."""

    exchange: Exchange
    run_id: str
    study_hash: str

    def ask(
        self,
        requests: Mapping[str, bytes],
        request: Request,
        *,
        timeout_seconds: float,
        enough: int | None = None,
    ) -> Iterator[Reply]:
        """Send each site its encoded request and yield each reply as it arrives, then who did not answer.

        Args:
            requests: encoded, by site; all of the kind and round of *request*.
            request: a header like those of *requests*, to which the answers must be.
            timeout_seconds: deadline.
            enough: so many answers do; the others then have `GRACE_SECONDS`.

        Raises:
            ExchangeError: the carrier failed.
        """
        silent = set(requests)
        if not requests:
            return
        arriving = self.exchange.exchange(
            requests, timeout_seconds=timeout_seconds, enough=enough, grace_seconds=GRACE_SECONDS
        )
        for raw in arriving:
            silent.discard(raw.site)
            yield self._read(raw.site, raw.message, request)
        for site in sorted(silent):
            yield Reply(site=site, refusal=NO_ANSWER)

    def ask_all(
        self, sites: Iterable[str], request: Request, payload: bytes = b"", *, timeout_seconds: float
    ) -> Iterator[Reply]:
        """Send all the same request."""
        message = encode(request, payload)
        return self.ask(dict.fromkeys(sites, message), request, timeout_seconds=timeout_seconds)

    def _read(self, site: str, message: bytes, request: Request) -> Reply:
        try:
            header, payload = decode_reply(message)
        except MessageError as error:
            log.warning("%s answered something else than a reply: %s", site, error)
            return Reply(site=site, refusal=BAD_REPLY)
        if not isinstance(header, Answer):
            log.warning("%s refused: %s", site, header.reason)
            return Reply(site=site, refusal=header.reason)
        expected = (request.kind, self.run_id, getattr(request, "round", 0))
        if (header.to, header.run_id, header.round) != expected:
            log.warning("%s answered to %s of round %d", site, header.to, header.round)
            return Reply(site=site, refusal=BAD_REPLY)
        return Reply(site=site, payload=payload)
