"""The bytes that a plan tells, against those that a real run of the round loop exchanges."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_sites import RUN, FakeExchange
from studies import make_study
from test_server_aggregation import DISTRIBUTED

from server.exchange import SiteReply
from server.round_loop import close_run, run_rounds
from server.run import checkpoint_path
from server.run_state import RunContext
from shared_models.architectures import build_model
from shared_models.manifest import Manifest
from shared_models.messages import Evaluate, Train, decode_request
from shared_models.study import Study
from shared_models.vector import IntVector
from simulations.traffic import num_batches, run_traffic

SITES = {"alpha": 0.1, "beta": 0.2, "gamma-hospital": 0.3, "delta": 0.1, "epsilon": 0.3}
FIVE = {
    "num_sites_max = 3": "num_sites_max = 5",
    "threshold = 2": "threshold = 4",
    "num_colluding = 0": "num_colluding = 1",
}
SMALL_BATCHES = {**FIVE, "num_sites_max = 3": "num_sites_max = 5\nrounds_per_batch = 3"}
AVERAGED = {"learning_rate = 0.1": "learning_rate = 0.1\nema_decay = 0.9"}
SHARED_NOISE = {**DISTRIBUTED, **AVERAGED}


@dataclass
class Counted(FakeExchange):
    """Counts the bytes of each kind of exchange with one site."""

    watched: str = "beta"
    counted: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))

    def exchange(
        self,
        requests: Mapping[str, bytes],
        *,
        timeout_seconds: float,
        enough: int | None = None,
        grace_seconds: float = 0.0,
    ) -> Iterator[SiteReply]:
        for reply in super().exchange(
            requests, timeout_seconds=timeout_seconds, enough=enough, grace_seconds=grace_seconds
        ):
            if reply.site == self.watched:
                request, _ = decode_request(requests[reply.site])
                kind = request.kind
                if (
                    isinstance(request, Train)
                    and request.round - 1 in self.study.evaluation.validation_rounds
                ):
                    kind = "train, with validation"
                self.counted[kind].append((len(requests[reply.site]), len(reply.message)))
            yield reply

    def vector(self, site: str, request: Train | Evaluate, num_weights: int) -> IntVector:
        """The request may bring two models."""
        return super().vector(site, request, Manifest.of(build_model(self.study)).num_weights)


def counted(study: Study, sites: Mapping[str, float], tmp_path: Path) -> dict[str, list[tuple[int, int]]]:
    exchange = Counted(study=study, shifts=dict(sites))
    context = RunContext(
        study=study,
        run_id=RUN,
        exchange=exchange,
        federation=exchange.federation,
        checkpoint=checkpoint_path(tmp_path, RUN),
        patience_seconds=0.0,
        start_seconds=0.0,
    )
    close_run(context, run_rounds(context))
    return dict(exchange.counted)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("changes", "num_sites"),
    [({}, 3), ({}, 2), (FIVE, 5), (FIVE, 4), (SMALL_BATCHES, 5), (AVERAGED, 2), (SHARED_NOISE, 3)],
)
def test_planned_bytes_and_exchanges_are_those_of_a_run(
    changes: dict[str, str], num_sites: int, tmp_path: Path
) -> None:
    private = changes is SHARED_NOISE
    study = make_study({**changes, "num_rounds = 3": "num_rounds = 11"}, private=private)
    sites = dict(list(SITES.items())[:num_sites])
    seen = counted(study, sites, tmp_path)
    num_weights = Manifest.of(build_model(study)).num_weights
    planned = run_traffic(study, names=tuple(sites), num_weights=num_weights, run_id=RUN)
    assert {one.kind for one in planned} == set(seen)
    for one in planned:
        real = seen[one.kind]
        assert (one.times, one.down, one.up) == (
            len(real),
            sum(down for down, _ in real),
            sum(up for _, up in real),
        ), one.kind
        assert (one.most_down, one.most_up) == (max(down for down, _ in real), max(up for _, up in real))
    assert num_batches(study) == len(seen["share"])


@pytest.mark.slow
def test_the_model_goes_down_and_the_masked_vector_up_four_bytes_for_each_weight() -> None:
    study = make_study(FIVE)
    small = {one.kind: one for one in run_traffic(study, names=tuple(SITES), num_weights=1_000)}
    large = {one.kind: one for one in run_traffic(study, names=tuple(SITES), num_weights=2_000)}
    assert large["train"].most_down - small["train"].most_down == 4_000
    assert large["train"].most_up - small["train"].most_up == 4_000
    assert large["evaluate"].most_up == small["evaluate"].most_up
    assert large["share"] == small["share"]
