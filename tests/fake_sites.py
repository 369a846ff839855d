"""An exchange whose sites are small objects in memory: it implements the real protocol in a few lines."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from server.exchange import SiteReply
from shared_models.messages import Answer, Evaluate, Open, Refusal, Request, Train, decode_request, encode
from shared_models.study import Study
from shared_models.tasks import task_of
from shared_models.vector import VectorLayout, to_bytes

Behaviour = Callable[[str, Request], bytes | None]
"""May answer in the site's place: bytes are the reply, None lets the site answer itself."""


@dataclass
class FakeExchange:
    """Sites that shift every weight by their own constant and have one patient each."""

    study: Study
    shifts: dict[str, float]
    weights: dict[str, int] = field(default_factory=dict)
    behave: Behaviour = lambda site, request: None
    absent: Callable[[str, Request], bool] = lambda site, request: False
    seen: list[tuple[str, Request]] = field(default_factory=list)

    def known_sites(self) -> tuple[str, ...]:
        return tuple(sorted(self.shifts))

    def sites(self) -> tuple[str, ...]:
        return tuple(sorted(self.shifts))

    def exchange(self, requests: Mapping[str, bytes], *, timeout_seconds: float) -> Iterator[SiteReply]:
        for site, message in requests.items():
            request, payload = decode_request(message)
            self.seen.append((site, request))
            if self.absent(site, request):
                continue
            reply = self.behave(site, request)
            yield SiteReply(site=site, message=reply or self._answer(site, request, payload))

    def _answer(self, site: str, request: Request, payload: bytes) -> bytes:
        if isinstance(request, Train):
            num_weights = len(payload) // 4
            validated = request.round - 1 in self.study.evaluation.validation_rounds
            statistics = self._statistics() if validated else np.zeros(0, dtype=np.int64)
            layout = self._layout(num_weights, len(statistics))
            update = np.full(num_weights, self.shifts[site])
            vector = layout.encode(update=update, weight=self.weights.get(site, 1), statistics=statistics)
            return encode(Answer(run_id=request.run_id, round=request.round), to_bytes(vector))
        if isinstance(request, Evaluate):
            again = self.study.training.num_rounds in self.study.evaluation.validation_rounds
            statistics = np.concatenate([self._statistics()] * (2 if again else 1))
            vector = self._layout(0, len(statistics)).encode(update=None, weight=1, statistics=statistics)
            return encode(
                Answer(run_id=request.run_id, round=self.study.training.num_rounds + 1), to_bytes(vector)
            )
        return encode(Answer(run_id=request.run_id, round=0))

    def _statistics(self) -> np.ndarray:
        return task_of(self.study).statistics(np.array([0.9, 0.2]), np.array([1, 0]))

    def _layout(self, num_weights: int, num_statistics: int) -> VectorLayout:
        return VectorLayout.of_study(
            self.study.aggregation, num_weights=num_weights, num_statistics=num_statistics
        )


def refusing(reason: str, *, site: str, kind: type[Open] | type[Train] | type[Evaluate]) -> Behaviour:
    """Lets *site* refuse requests of one kind."""

    def behave(name: str, request: Request) -> bytes | None:
        if name == site and isinstance(request, kind):
            return encode(Refusal.model_validate({"run_id": request.run_id, "reason": reason}))
        return None

    return behave
