# Each target sets up .venv by itself when it is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# As many workers as there are cores for this process (tests/conftest.py), and the slowest tests at the end.
PYTEST_ARGUMENTS := pytest -rs -n auto --durations=20
PYTEST := $(BIN)/python -m $(PYTEST_ARGUMENTS)
COVERED := COVERAGE_FILE=$(CURDIR)/.coverage PYTHONPATH=$(CURDIR)/tests/faults/injected $(BIN)/coverage run -m

.PHONY: run test test-all test-rest coverage test-faults lint bench clean-venv

run: $(VENV)/.ready  ## search the embedded synthetic corpus (no data, no GPU, no cluster)
	$(BIN)/python -m search.run

test: lint  ## lint, types, every quick test, and the whole runs that prove the road (10 minutes)
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m "not slow and not cluster"

test-all: test test-rest  ## everything (25 minutes)

test-rest: $(VENV)/.ready  ## what test-all adds: the other whole runs, several hosts, an imitation of AWS
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m "slow or cluster"

coverage: $(VENV)/.ready  ## lines and branches of the four packages, in every process that test-all starts
	$(BIN)/coverage erase
	-$(COVERED) $(PYTEST_ARGUMENTS) --dist loadfile --no-loadscope-reorder -m "not slow and not cluster"
	-$(COVERED) $(PYTEST_ARGUMENTS) --dist loadfile --no-loadscope-reorder -m "slow or cluster"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/coverage json --quiet -o coverage.json

test-faults: $(VENV)/.ready  ## a campaign of faults, each followed by --resume (half an hour)
	$(BIN)/python -m tests.faults.campaign --out docs/faults.md

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready  ## the measurements behind docs/performance.md
	$(BIN)/python -m benchmarks.gpu
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
