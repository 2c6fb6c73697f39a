.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
INPUTS ?= 10000
VERSIONS ?= floor newest
WHOLE := .venvs/whole.xml
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Training spends its time in the kernel without these: glibc hands large buffers back at each step.
TRAIN := MALLOC_MMAP_THRESHOLD_=33000000 MALLOC_TRIM_THRESHOLD_=8000000000 \
	MALLOC_TOP_PAD_=134217728 $(BIN)/python -m

.PHONY: help setup demo test test-versions fuzz check lint types layers docs clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | \
		awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else \
		f"Expected Python 3.11 or newer. Got {v.major}.{v.minor}. Run: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

.venv/.setup: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[plots]'
	@touch $@

.venv/.train: .venv/.setup
	$(PIP) --editable '.[train]'
	@touch $@

.venv/.test: .venv/.setup
	$(PIP) --editable '.[test]'
	@touch $@

.venv/.dev: .venv/.test
	$(PIP) --editable '.[dev]'
	@touch $@

.venv/.docs: .venv/.setup
	$(PIP) --editable '.[docs]'
	@touch $@

setup: .venv/.setup  ## Create .venv with the tokensieve command

demo: .venv/.setup  ## Ask the embedded model about shipped pictures, with fewer and fewer tokens
	@$(BIN)/tokensieve demo

test: .venv/.test  ## Run the tests, on up to four cores
	@mkdir -p .venvs
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --junitxml=$(WHOLE)

test-versions: .venv/.test  ## The contracts on other versions (VERSIONS="floor 5.20.0 newest")
	$(BIN)/python .ci/versions.py $(VERSIONS) --whole $(WHOLE) $(if $(PAGE),--out $(PAGE))

fuzz: .venv/.test  ## 10,000 spoilt inputs for each boundary (make fuzz INPUTS=100000 for more)
	TOKENSIEVE_FUZZ=$(INPUTS) $(BIN)/python -m pytest tests/fuzz

check: lint types layers  ## Everything CI checks besides the tests

lint: .venv/.dev  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev  ## mypy --strict
	$(BIN)/mypy

layers: .venv/.dev  ## import-linter: imports point one way
	$(BIN)/lint-imports

docs: .venv/.docs  ## The site, into site/; dead links and unknown names fail (make docs SERVE=1 shows it)
	$(BIN)/mkdocs $(if $(SERVE),serve,build) --strict

# What makes our own weights, tables and pages: each recipe and study brings its targets.
include $(wildcard lab/*/*.mk lab/studies/*/study.mk)

clean:  ## Remove the environment and everything built
	rm -rf .venv .venvs runs out site .mypy_cache .ruff_cache .import_linter_cache
