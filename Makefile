# The few commands a person needs. VENV and PYTHON can be set from the outside.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test check clean

quickstart: $(VENV)/.installed  ## install and compare eleven methods on the embedded backbone
	$(BIN)/dpbench run manifests/quickstart.yaml
	$(BIN)/dpbench report --run results/quickstart

test: check  ## everything CI runs: the static checks, then every test
	$(BIN)/pytest

check: $(VENV)/.tested  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
