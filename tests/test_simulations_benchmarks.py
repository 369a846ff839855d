"""The benchmarks' bookkeeping: ratios, files, names. No claim about any time."""

import json
import pickle
import re
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from server.result import RoundEntry
from shared_models.vector import VectorLayout
from simulations.benchmarks.__main__ import MODULES, app, load, run
from simulations.benchmarks.deployed_round import overhead
from simulations.benchmarks.dp_step import CUDA_CASES, Case, plain_step
from simulations.benchmarks.machine import Machine, this_machine
from simulations.benchmarks.memory import can_measure_resident, resident_peak_mib, traced_peak_mib
from simulations.benchmarks.secure_aggregation import Consortium, serve
from simulations.benchmarks.table import Benchmark, Outcome, Row, rows_of, write
from simulations.benchmarks.timing import interleaved

FIELDS = {"schema", "name", "title", "method", "quick", "started", "seconds", "machine", "versions", "rows"}
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
ROW_FIELDS = {"case", "variant", "value", "unit", "ratio", "low", "high", "repetitions"}


def outcome_of(rows: tuple[Row, ...]) -> Outcome:
    return Outcome(
        benchmark=Benchmark(name="toy", title="a toy", method="none", measure=lambda quick: rows),
        rows=rows,
        started=datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        seconds=1.25,
        quick=True,
        machine=this_machine(),
    )


# Ratios


def test_a_ratio_is_the_variants_median_over_the_median_of_its_cases_baseline() -> None:
    rows = rows_of("a case", "ms", {"plain": [2.0, 4.0, 100.0], "ours": [1.0, 10.0, 12.0]}, baseline="plain")
    plain, ours = rows
    assert (plain.value, plain.ratio, plain.low, plain.high, plain.repetitions) == (4.0, 1.0, 2.0, 100.0, 3)
    assert (ours.value, ours.ratio, ours.low, ours.high) == (10.0, 2.5, 1.0, 12.0)


def test_each_case_has_its_own_baseline() -> None:
    small = rows_of("small", "s", {"plain": [1.0], "ours": [3.0]}, baseline="plain")
    large = rows_of("large", "s", {"ours": [30.0], "plain": [20.0]}, baseline="plain")
    assert [row.ratio for row in (*small, *large)] == [1.0, 3.0, 1.5, 1.0]


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ({"ours": [1.0]}, "must be one of ours"),
        ({"plain": [1.0], "ours": []}, "no sample of ours"),
        ({"plain": [0.0]}, "must be above 0"),
        ({"plain": [float("nan")]}, "must be above 0"),
    ],
)
def test_samples_without_a_usable_baseline_are_refused(samples: dict[str, list[float]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rows_of("a case", "s", samples, baseline="plain")


def test_variants_are_measured_in_turn_after_one_call_of_each() -> None:
    calls: list[str] = []
    samples = interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repetitions=2, calls=2
    )
    assert "".join(calls) == "ab" + "aabb" * 2
    assert {name: len(values) for name, values in samples.items()} == {"a": 2, "b": 2}


# Memory


def test_traced_memory_counts_arrays_at_their_peak() -> None:
    assert 8.0 <= traced_peak_mib(lambda: np.ones(2**20).sum()) < 8.5


def one_hundred_mebibytes() -> object:
    return lambda: np.ones(100 * 2**17).sum()


@pytest.mark.thorough
@pytest.mark.skipif(not can_measure_resident(), reason="the system does not tell peak resident memory")
def test_resident_memory_counts_what_the_work_allocates_in_its_own_process() -> None:
    assert 99.0 <= resident_peak_mib(one_hundred_mebibytes, module="numpy") < 110.0


# The file


def test_the_file_has_the_documented_fields_and_replaces_the_last_one_whole(tmp_path: Path) -> None:
    rows = rows_of("a case", "s", {"plain": [1.0], "ours": [3.0]}, baseline="plain")
    (tmp_path / "toy.json").write_text("an earlier run, longer than the new one" * 1000)
    path = write(outcome_of(rows), tmp_path)
    values = json.loads(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "toy.json"
    assert list(tmp_path.iterdir()) == [path]
    assert set(values) == FIELDS
    assert values["schema"] == 1
    assert values["machine"]["cores"] >= 1 and values["machine"]["processor"]
    assert {"python", "collegium", "torch", "opacus", "numpy", "pydicom", "flwr"} <= set(values["versions"])
    assert [set(row) for row in values["rows"]] == [ROW_FIELDS] * 2
    assert values["rows"][1] == {
        "case": "a case", "variant": "ours", "value": 3.0, "unit": "s",
        "ratio": 3.0, "low": 3.0, "high": 3.0, "repetitions": 1,
    }  # fmt: skip


def test_the_page_names_every_benchmark_and_every_field_and_no_other() -> None:
    named = set(re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert named == FIELDS | ROW_FIELDS | {field.name for field in fields(Machine)} | set(MODULES)


def test_a_figure_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    rows = rows_of("a case", "s", {"plain": [1.0], "ours": [float("inf")]}, baseline="plain")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(outcome_of(rows), tmp_path)
    assert not (tmp_path / "toy.json").exists()


# The command


def test_an_unknown_name_is_told_with_the_known_ones_and_nothing_is_written(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["nonsense", "--out", str(tmp_path)])
    assert told.exit_code == 2
    assert "nonsense: no such benchmark" in told.stderr
    assert all(name in told.stderr for name in ("all", *MODULES))
    assert list(tmp_path.iterdir()) == []


def test_every_name_leads_to_the_benchmark_of_that_name() -> None:
    assert {name: load(name).name for name in MODULES} == {name: name for name in MODULES}


def test_a_benchmark_run_by_name_prints_its_table_and_writes_its_file(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["encode", "--quick", "--out", str(tmp_path)])
    assert done.exit_code == 0
    assert "VectorLayout.encode" in done.stdout and "figures mean nothing" in done.stdout
    values = json.loads((tmp_path / "encode.json").read_text(encoding="utf-8"))
    plain, ours = values["rows"]
    assert values["quick"] is True
    assert ours["ratio"] == pytest.approx(ours["value"] / plain["value"])
    assert plain["ratio"] == 1.0


def test_without_public_images_the_trained_models_are_refused_with_the_way_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLLEGIUM_DATA", raising=False)
    told = CliRunner().invoke(app, ["trained", "--out", str(tmp_path)])
    assert told.exit_code == 2
    assert "set COLLEGIUM_DATA" in told.stderr
    monkeypatch.setenv("COLLEGIUM_DATA", str(tmp_path))
    told = CliRunner().invoke(app, ["trained", "--out", str(tmp_path)])
    assert told.exit_code == 2
    assert "pneumoniamnist" in told.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_trained_models_are_compared_with_pooled_ones() -> None:
    rows = run(load("trained"), quick=True).rows
    assert {row.variant for row in rows} == {
        "pooled",
        "federated, exact",
        "federated, as the server knows it",
    }
    assert all(0.0 <= row.low <= row.high <= 1.0 for row in rows)
    assert len({row.case for row in rows}) == 3


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["dp-step", "ingest", "predict", "secure-aggregation"])
def test_every_variant_of_a_case_has_a_row_beside_exactly_one_baseline(name: str) -> None:
    rows = run(load(name), quick=True).rows
    for case in {row.case for row in rows}:
        ratios = [row.ratio for row in rows if row.case == case]
        assert len(ratios) >= 2
        assert ratios[0] == 1.0
        assert len({row.unit for row in rows if row.case == case}) == 1


@pytest.mark.parametrize("case", CUDA_CASES, ids=lambda case: case.name)
def test_every_network_takes_its_step_in_another_process(case: Case) -> None:
    """Peak memory is measured in one, to which the case travels pickled."""
    there = pickle.loads(pickle.dumps(case))
    plain_step(there, 2, torch.device("cpu"))()
    assert there.name == case.name


@pytest.mark.deployed
@pytest.mark.slow
@pytest.mark.thorough
def test_the_round_benchmark_runs_both_engines() -> None:
    rows = run(load("round"), quick=True).rows
    assert [row.variant for row in rows] == ["local", "deployed"] * 2


@pytest.mark.deployed
@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_the_deployed_round_runs_beside_flowers_secure_aggregation() -> None:
    rows = run(load("deployed-round"), quick=True).rows
    assert [row.variant for row in rows] == ["Flower SecAgg+", "ours", "ours, without setup"]


def test_a_rounds_overhead_is_all_of_its_phases_without_training() -> None:
    seconds = {"setup": 0.5, "exchange": 3.0, "confirm": 1.0, "unmask": 1.0, "a new phase": 0.25}
    entry = RoundEntry(
        round=2,
        survivors=("a", "b"),
        burned=None,
        metrics=None,
        seconds={**seconds, "train_slowest_site": 2.0},
    )
    assert overhead(entry) == pytest.approx(3.75)
    with pytest.raises(RuntimeError, match="round 2 was burned: too few"):
        overhead(entry.model_copy(update={"burned": "too few"}))


# What is compared does the same


@pytest.mark.parametrize("vanished", [0, 1])
def test_the_server_that_is_measured_opens_the_sum(vanished: int) -> None:
    layout = VectorLayout(num_weights=40, num_statistics=0, num_sites_max=4, update_bound=1.0, max_weight=1)
    consortium = Consortium(4, layout)
    about = consortium.about(1, layout.length)
    vectors = np.random.default_rng(2).integers(0, 2**32, (4, layout.length), dtype=np.uint32)
    uploads = {site: consortium.upload(site, about, vectors[site]) for site in range(vanished, 4)}
    total = serve(about, uploads.items(), consortium.answers(about, uploads))
    np.testing.assert_array_equal(total, vectors[vanished:].sum(axis=0, dtype=np.uint32))
