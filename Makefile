# Every target needs one environment, which it makes: .venv. On a fresh machine `make demo` and `make test` are enough.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH ?= all
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# `make check test` runs the fast tests once.
FAST := not slow and not deployed and not thorough

.DEFAULT_GOAL := help
.PHONY: help demo test check lint fast slow thorough bench clean

help: ## Print this help
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Collegium needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## Train four synthetic hospitals together, with privacy, and compare with each alone
	$(BIN)/collegium-simulate run demo --compare --out build/demo --overwrite

test: fast slow ## Run the tests (about fifteen minutes)

check: lint fast ## Format, lint, types, fast tests (about five minutes)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fast: $(READY)
	$(PYTEST) -m "$(FAST)"

slow: $(READY)
	$(PYTEST) -m "not thorough and not ($(FAST))"

thorough: $(READY) ## Everything, the tests that take many minutes included
	$(PYTEST) --timeout 3600

bench: $(READY) ## Run all benchmarks, or one: make bench BENCH=name
	$(BIN)/python -m simulations.benchmarks $(BENCH)

clean: ## Remove what was built; .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
