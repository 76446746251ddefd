# Each target sets up .venv by itself when it is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-cluster test-faults lint bench clean-venv

run: $(VENV)/.ready  ## search the embedded synthetic corpus (no data, no GPU, no cluster)
	$(BIN)/python -m search.run

test: lint  ## everything that must hold; what uses few processes, side by side
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -n auto --dist loadfile -m "not slow and not cluster"
	$(BIN)/python -m pytest -rs -m "slow or cluster"

test-cluster: $(VENV)/.ready  ## three hosts, made of network namespaces
	$(BIN)/python -m pytest -m cluster -rs

test-faults: $(VENV)/.ready  ## a campaign of faults, each followed by --resume (half an hour)
	$(BIN)/python -m tests.faults.campaign --out docs/faults.md

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready  ## the measurements behind docs/performance.md
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.prepare
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.trial_overhead
	$(BIN)/python -m benchmarks.profile_trial
	$(BIN)/python -m benchmarks.watching
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.shown_trials
	$(BIN)/python -m benchmarks.models
	$(BIN)/python -m benchmarks.transfer
	$(BIN)/python -m benchmarks.fusion
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.honesty

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.[dev]'
	@touch $@

clean-venv:
	rm -rf $(VENV)
