"""An exchange whose sites are small objects in memory: real secure aggregation, made-up training."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.secure_session import NoBatch, SecureSession
from privacy.secure_aggregation.context import Federation
from privacy.secure_aggregation.refusals import SecureAggregationError
from privacy.secure_aggregation.site_setup import Membership
from privacy.secure_aggregation.terms import Terms
from server.exchange import SiteReply
from shared_models.layouts import final_layout, training_layout
from shared_models.messages import (
    Advertise,
    Answer,
    Close,
    Confirm,
    Escrow,
    Evaluate,
    Open,
    Refusal,
    Request,
    Share,
    Train,
    Unmask,
    decode_request,
    encode,
)
from shared_models.study import Study
from shared_models.tasks.registry import task_of
from shared_models.vector import IntVector

Behaviour = Callable[[str, Request], bytes | None]
"""May answer in the site's place: bytes are the reply, None lets the site answer itself."""

RUN = "run-1"


@dataclass
class FakeExchange:
    """Sites that shift every weight by their own constant and have one patient each.

    ``absent`` sites do not get the request; of ``mute`` ones the reply is lost. ``restart`` makes a site forget its
    secure aggregation, as an agent does that is started again. ``scores``: of a positive and a negative patient, by the
    round whose model is validated.
    """

    study: Study
    shifts: dict[str, float]
    weights: dict[str, int] = field(default_factory=dict)
    behave: Behaviour = lambda site, request: None
    absent: Callable[[str, Request], bool] = lambda site, request: False
    mute: Callable[[str, Request], bool] = lambda site, request: False
    run_id: str = RUN
    scores: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    seen: list[tuple[str, Request]] = field(default_factory=list)
    sessions: dict[str, SecureSession] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.identities = {site: Ed25519PrivateKey.generate() for site in sorted(self.shifts)}
        self.federation = Federation(
            study_hash=self.study.hash,
            run_id=self.run_id,
            roster_hash=hashlib.sha256(b"the roster of a test").digest(),
            identities={site: key.public_key().public_bytes_raw() for site, key in self.identities.items()},
            terms=Terms.of(self.study.aggregation),
        )
        self.begun = dict.fromkeys(self.shifts, 0)

    def restart(self, site: str) -> None:
        """The site's process ends, and another begins that was asked nothing yet."""
        self.sessions.pop(site, None)

    def known_sites(self) -> tuple[str, ...]:
        return tuple(sorted(self.shifts))

    def sites(self) -> tuple[str, ...]:
        return tuple(sorted(self.shifts))

    def exchange(
        self,
        requests: Mapping[str, bytes],
        *,
        timeout_seconds: float,
        enough: int | None = None,
        grace_seconds: float = 0.0,
    ) -> Iterator[SiteReply]:
        for site, message in requests.items():
            request, payload = decode_request(message)
            self.seen.append((site, request))
            if self.absent(site, request):
                continue
            reply = self.behave(site, request) or self._answer(site, request, payload, message)
            if not self.mute(site, request):
                yield SiteReply(site=site, message=reply)

    def _answer(self, site: str, request: Request, payload: bytes, message: bytes) -> bytes:
        number = request.round if isinstance(request, Train | Evaluate | Confirm | Unmask) else 0
        try:
            body = self._step(site, request, payload, message)
        except KeyError:
            return encode(Refusal(run_id=request.run_id, reason="not-open"))
        except NoBatch:
            return encode(Refusal(run_id=request.run_id, reason="no-batch"))
        except SecureAggregationError:
            return encode(Refusal(run_id=request.run_id, reason="protocol"))
        return encode(Answer(to=request.kind, run_id=request.run_id, round=number), body)

    def _step(self, site: str, request: Request, payload: bytes, message: bytes) -> bytes:
        if isinstance(request, Open):
            membership = Membership(
                federation=self.federation, name=site, identity=self.identities[site], floor=2
            )
            self.sessions[site] = SecureSession(membership, last_round=self.begun[site])
            return b""
        session = self.sessions[site]
        match request:
            case Advertise():
                return session.advertise(payload)
            case Share():
                return session.share(payload)
            case Escrow():
                return session.escrow(payload)
            case Train() | Evaluate():
                vector = self.vector(site, request, len(payload) // 4)
                session.begin(
                    request.round,
                    request.round_set,
                    request_hash=hashlib.sha256(message).digest(),
                    length=vector.size,
                )
                self.begun[site] = request.round
                return session.mask(vector)
            case Confirm():
                return session.confirm(request.round, payload, journal_head=bytes(32))
            case Unmask():
                return session.unmask(request.round, payload)[0]
            case Close():
                session.erase()
        return b""

    def vector(self, site: str, request: Train | Evaluate, num_weights: int) -> IntVector:
        """What the site would send if nothing were masked."""
        if isinstance(request, Evaluate):
            layout = final_layout(self.study)
            repeats = layout.num_statistics // task_of(self.study).num_statistics
            statistics = np.concatenate([self._statistics(request.round - 1)] * repeats)
            return layout.encode(update=None, weight=1, statistics=statistics)
        layout = training_layout(self.study, request.round, num_weights=num_weights)
        statistics = (
            self._statistics(request.round - 1) if layout.num_statistics else np.zeros(0, dtype=np.int64)
        )
        update = np.full(num_weights, self.shifts[site])
        return layout.encode(update=update, weight=self.weights.get(site, 1), statistics=statistics)

    def _statistics(self, validated: int) -> np.ndarray:
        scores = self.scores.get(validated, (0.9, 0.2))
        return task_of(self.study).statistics(np.array(scores), np.array([1, 0]))


def refusing(
    reason: str, *, site: str, kind: type[Open] | type[Advertise] | type[Train] | type[Evaluate]
) -> Behaviour:
    """Lets *site* refuse requests of one kind."""

    def behave(name: str, request: Request) -> bytes | None:
        if name == site and isinstance(request, kind):
            return encode(Refusal.model_validate({"run_id": request.run_id, "reason": reason}))
        return None

    return behave
