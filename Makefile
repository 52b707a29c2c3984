# Two commands do everything on a machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Processes that share the tests, a file at a time; 0 runs them in one.
WORKERS ?= 2
DEFAULT := not slow and not gpu and not network
# Two math runtimes on few cores slow each other down; tests and demo are small.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-all lint format typecheck docs scores clean

demo: $(VENV)/installed
	$(BIN)/adapterhub demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "$(DEFAULT) and not alone" --cov --cov-report=
	$(BIN)/python -m pytest -m "$(DEFAULT) and alone" --cov --cov-append --cov-report=term

test-all: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "not gpu and not network"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build --strict

scores: $(VENV)/installed
	$(BIN)/python -m examples.demo.score

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone: a looser range would pull gigabytes of CUDA packages.
$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) torch
	$(INSTALL) -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) -e ".[dev,train]"
	touch $@

clean:
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache .coverage
