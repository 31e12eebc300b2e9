# The few commands a person needs. VENV and PYTHON can be set from the outside.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# without a GPU: torch's index of CPU builds (pytorch.org, "Get started", CPU) saves the 4 GB of CUDA libraries
TORCH_INDEX ?=
# tests start many processes: compiling the package anew in each would cost a second
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test test-fast test-slow chaos check clean

quickstart: $(VENV)/.installed  ## install and compare four methods on the embedded backbone
	@# a small model gains nothing from a second thread, but everything from a second process
	OMP_NUM_THREADS=1 $(BIN)/dpbench run quickstart --num-shards 2 --shard 1 2> /dev/null & other=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/dpbench run quickstart --num-shards 2 --shard 0 && wait $$other && \
	$(BIN)/dpbench merge results/quickstart

test: check  ## everything CI runs: the static checks, then every test
	$(BIN)/pytest -n auto --dist worksteal

test-fast: $(VENV)/.tested  ## the contract in under a minute: engine equalities, methods, layout, records
	$(BIN)/pytest -n auto tests/test_*.py tests/baselines tests/engine tests/manifest tests/storage

test-slow: $(VENV)/.tested  ## what repeats at length what a faster test pins
	$(BIN)/pytest -n auto -m slow

chaos: $(VENV)/.tested  ## kill runs and trainings at random times, damage files at random places
	$(BIN)/pytest -m slow tests/reliability

check: $(VENV)/.tested  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet torch torchvision --index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
