# make train: a model that tells stories. make test: everything is as it should be.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test test-extras check clean

train: $(VENV)/ready
	$(BIN)/homunculi train quickstart

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest -q -n 2 tests

test-extras: $(VENV)/ready-extras
	$(BIN)/python -m pytest -q tests/extras

check: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/python-ready:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	touch $@

$(VENV)/ready: $(VENV)/python-ready pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" -e .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[dev]"
	touch $@

$(VENV)/ready-extras: $(VENV)/ready-dev pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[dev,data,hf]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
