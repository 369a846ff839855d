"""``aggregate``: the server's part of a round, from the bytes of n sites to the next global weights."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from server.aggregation import GlobalModel
from shared_models.manifest import FloatVector
from shared_models.vector import VectorLayout, from_bytes
from simulations.benchmarks.encode import encoded
from simulations.benchmarks.memory import traced_peak_mib
from simulations.benchmarks.table import Benchmark, Row, rows_of
from simulations.benchmarks.timing import converted, interleaved

BASELINE = "numpy mean of a stack"
OURS = "running sum"
NUM_DIFFERENT = 10


def measure(quick: bool) -> tuple[Row, ...]:
    """Time and memory for cohorts of 3, 10 and 100 sites."""
    num_weights, cohorts = (10_000, (3,)) if quick else (1_000_000, (3, 10, 100))
    rows: list[Row] = []
    for num_sites in cohorts:
        rows += _cohort(num_sites, num_weights, repetitions=3 if quick else 9 if num_sites > 10 else 15)
    return tuple(rows)


def _cohort(num_sites: int, num_weights: int, *, repetitions: int) -> tuple[Row, ...]:
    layout = VectorLayout(
        num_weights=num_weights, num_statistics=0, num_sites_max=100, update_bound=1.0, max_weight=1
    )
    generator = np.random.default_rng(0)
    updates = [generator.normal(0.0, 0.01, num_weights) for _ in range(min(num_sites, NUM_DIFFERENT))]
    weights = np.zeros(num_weights, dtype=np.float32)
    integers = [encoded(layout, update) for update in updates]
    floats = [update.astype(np.float32).tobytes() for update in updates]

    seconds = interleaved(
        {
            BASELINE: lambda: mean_of_stack(_arriving(floats, num_sites, fresh=False), weights),
            OURS: lambda: running_sum(_arriving(integers, num_sites, fresh=False), weights, layout),
        },
        repetitions=repetitions,
    )
    work = {
        BASELINE: lambda: mean_of_stack(_arriving(floats, num_sites, fresh=True), weights),
        OURS: lambda: running_sum(_arriving(integers, num_sites, fresh=True), weights, layout),
    }
    memory = {name: (traced_peak_mib(once),) for name, once in work.items()}

    case = f"{num_sites} sites × {num_weights:,} weights"
    speed = partial(_megabytes_per_second, num_sites * num_weights * 4)
    return (
        *rows_of(f"{case}: time", "ms", converted(seconds, lambda value: 1000.0 * value), baseline=BASELINE),
        *rows_of(f"{case}: speed", "MB/s", converted(seconds, speed), baseline=BASELINE),
        *rows_of(f"{case}: peak memory", "MiB", memory, baseline=BASELINE),
    )


def mean_of_stack(payloads: Iterator[bytes], weights: FloatVector) -> FloatVector:
    """The plainest federated averaging: keep every update, then take the mean, all in float32."""
    updates = np.stack([np.frombuffer(payload, dtype=np.float32) for payload in payloads])
    return np.asarray(weights + updates.mean(axis=0, dtype=np.float32), dtype=np.float32)


def running_sum(payloads: Iterator[bytes], weights: FloatVector, layout: VectorLayout) -> FloatVector:
    """What the server's round does with vectors, the checks and masks of secure aggregation left out."""
    total = np.zeros(layout.length, dtype=np.uint32)
    for payload in payloads:
        np.add(total, from_bytes(payload, length=layout.length), out=total)
    mean, _, _ = layout.decode_sum(total)
    return GlobalModel.begin(weights).moved(mean, momentum=0.0).weights


def _arriving(payloads: list[bytes], num_sites: int, *, fresh: bool) -> Iterator[bytes]:
    """One payload a site; *fresh* ones take memory as long as somebody keeps them, as off a network."""
    for site in range(num_sites):
        payload = payloads[site % len(payloads)]
        yield bytes(bytearray(payload)) if fresh else payload


def _megabytes_per_second(num_bytes: int, seconds: float) -> float:
    return num_bytes / 1e6 / seconds


BENCHMARK = Benchmark(
    name="aggregate",
    title="from the sites' bytes to the next global weights",
    method="one running sum, VectorLayout.decode_sum and GlobalModel.moved, against the float32 mean of all stacked "
    "updates; one thread. Peak memory by tracemalloc, measured apart from time, the arriving payloads included",
    measure=measure,
)
