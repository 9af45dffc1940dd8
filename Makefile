# `make demo` and `make test` do all set-up on a fresh machine: a virtual environment, then the job.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MATRIX_VENV ?= .venv-4.57
MATRIX_BIN := $(MATRIX_VENV)/bin

# A process for each core, each with models and a torch of its own; PROCESSES=0 is one, which a debugger can stop.
PROCESSES ?= auto
PARALLEL := --numprocesses $(PROCESSES) --maxprocesses 8 --dist worksteal

# fairseq2 pins its own torch.
FAIRSEQ2_VENV ?= .venv-fairseq2
FAIRSEQ2_BIN := $(FAIRSEQ2_VENV)/bin

.PHONY: demo test test-matrix test-fairseq2 env-fairseq2 test-slow lint bench clean

# DEMO_ARGS=--restart makes results again that were made with other settings.
demo: $(VENV)/installed
	$(BIN)/nllb-prune demo --output demo-output $(DEMO_ARGS)

test: $(VENV)/installed
	$(BIN)/python -m pytest $(PARALLEL)

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

# The same tests with the same expectations on the other line of transformers.
test-matrix: test $(MATRIX_VENV)/installed
	$(MATRIX_BIN)/python -m pytest $(PARALLEL)

# The tests of what runs on fairseq2.
test-fairseq2: env-fairseq2
	$(FAIRSEQ2_BIN)/python -m pytest $(PARALLEL) -m fairseq2 tests/on_fairseq2

env-fairseq2: $(FAIRSEQ2_VENV)/installed

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(MATRIX_VENV)/installed
	$(MATRIX_BIN)/python -m eval.bench.sparse_layer

$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python must be 3.11 or newer, but is " + sys.version.split()[0] + "; name another, as in: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# The same for the other line of transformers.
$(MATRIX_VENV)/installed: requirements.lock requirements-4.57.lock pyproject.toml
	$(PYTHON) -m venv $(MATRIX_VENV)
	$(MATRIX_BIN)/pip install --quiet --disable-pip-version-check --requirement requirements-4.57.lock
	$(MATRIX_BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# About 7 GB: fairseq2 wants the CUDA build of torch, which runs without a GPU as well. Its wheels are for CPython 3.11
# and 3.12, on Linux (x86-64) and macOS (arm64).
$(FAIRSEQ2_VENV)/installed: requirements-fairseq2.lock pyproject.toml
	$(PYTHON) -m venv $(FAIRSEQ2_VENV)
	$(FAIRSEQ2_BIN)/pip install --quiet --disable-pip-version-check --requirement requirements-fairseq2.lock
	$(FAIRSEQ2_BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(FAIRSEQ2_BIN)/python -m nllb_prune.on_fairseq2.needed
	touch $@

clean:
	rm -rf $(VENV) $(MATRIX_VENV) $(FAIRSEQ2_VENV) demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
