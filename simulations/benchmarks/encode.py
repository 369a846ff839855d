"""``encode``: an update becomes the integer vector that leaves the site."""

import numpy as np
from numpy.typing import NDArray

from shared_models.vector import VectorLayout
from simulations.benchmarks.table import Benchmark, Row, rows_of
from simulations.benchmarks.timing import converted, interleaved

BASELINE = "numpy float32 bytes"


def measure(quick: bool) -> tuple[Row, ...]:
    """Time `VectorLayout.encode` to bytes against a plain cast to float32."""
    num_weights, repetitions = (10_000, 3) if quick else (1_000_000, 31)
    update = np.random.default_rng(0).normal(0.0, 0.01, num_weights)
    layout = VectorLayout(
        num_weights=num_weights, num_statistics=0, num_sites_max=100, update_bound=1.0, max_weight=1000
    )
    seconds = interleaved(
        {
            BASELINE: lambda: update.astype(np.float32).tobytes(),
            "VectorLayout.encode": lambda: encoded(layout, update),
        },
        repetitions=repetitions,
    )
    case = f"{num_weights:,} weights"
    return rows_of(case, "ms", converted(seconds, lambda value: 1000.0 * value), baseline=BASELINE)


def encoded(layout: VectorLayout, update: NDArray[np.float64]) -> bytes:
    """The bytes that a site sends for *update*."""
    no_statistics = np.zeros(0, dtype=np.int64)
    return layout.encode(update=update, weight=layout.max_weight, statistics=no_statistics).tobytes()


BENCHMARK = Benchmark(
    name="encode",
    title="from a float64 update to the bytes that leave the site",
    method="seconds of VectorLayout.encode and its bytes, against astype(float32).tobytes() of the same update; "
    "one thread",
    measure=measure,
)
