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

.PHONY: help setup demo test test-versions fuzz check lint types layers nano control selector presets \
	conditional fusion results results-inside results-ablations results-adaptive results-fusion results-worlds \
	receipts rates store clean

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

nano: .venv/.setup  ## Train the embedded model from scratch (resumes; about an hour on 2 cores)
	$(TRAIN) tokensieve.train.nano --stage all --out runs/nano

STORE := runs/nano/store-embeds

# Always run: it goes on, finds nothing to do, or says that another nano made what is there.
store: .venv/.train
	$(TRAIN) tokensieve extract --model nano --images synth:mix:4000 --site embeds --pixels \
		--out $(STORE)

selector: store  ## Train nano's selector, three seeds (about 20 minutes on one core)
	for seed in 0 1 2; do $(TRAIN) tokensieve train selector --features $(STORE) --holdout 0 \
		--config experiments/selector-nano.json --seed $$seed --threads 1 \
		--out runs/presets/default/seed$$seed || exit 1; done

presets: store  ## Train the papers' presets on the same features for the same steps
	sh experiments/presets.sh $(BIN)/python $(STORE)

conditional: .venv/.train  ## Train the reader of questions in front, and the selector inside it (after make nano)
	$(TRAIN) tokensieve.train.nano.ask_first --data runs/nano --out runs/ask-first
	$(TRAIN) tokensieve.train.nano.hidden --data runs/nano --out runs/hidden \
		--reader runs/ask-first/reader.safetensors --layers 1
	$(TRAIN) tokensieve train selector --features runs/hidden/layer1 --holdout 0 --threads 1 \
		--config experiments/conditional-selector.json --out runs/conditional

control: .venv/.setup  ## Train the control: nano's language model, never shown a shortened sequence
	$(TRAIN) tokensieve.train.nano --stage only-control --config experiments/nano-control.json \
		--out runs/nano-control

fusion: .venv/.train  ## Train nano's LLM under each way of having fewer tokens (after make nano; about 2 hours on 2 cores)
	$(TRAIN) tokensieve.train.nano.fusion experiments/fusion-arms.json --data runs/nano \
		--out runs/fusion --shard 0/2 & other=$$!; $(TRAIN) tokensieve.train.nano.fusion \
		experiments/fusion-arms.json --data runs/nano --out runs/fusion --shard 1/2 && wait $$other
	for arm in stf mlp; do sh experiments/arm-selector.sh $(BIN)/python runs/fusion/$$arm; done

results: .venv/.test  ## Rebuild records, tables and plots (resumes; under an hour on 2 cores)
	$(TRAIN) tokensieve.eval.run experiments/nano.json --shard 0/2 & other=$$!; \
		$(TRAIN) tokensieve.eval.run experiments/nano.json --shard 1/2 && wait $$other
	$(BIN)/python -m tokensieve.eval.tables

results-ablations: store .venv/.test  ## Train and measure every ablation (about 2 hours on 2 cores)
	$(TRAIN) tokensieve.train.ablations experiments/ablations.json --features $(STORE) \
		--shard 0/2 & other=$$!; $(TRAIN) tokensieve.train.ablations experiments/ablations.json \
		--features $(STORE) --shard 1/2 && wait $$other
	$(BIN)/python -m tokensieve.eval.ablations experiments/ablations.json

results-inside: .venv/.test  ## Measure selection inside the LLM
	$(TRAIN) tokensieve.eval.run experiments/conditional.json
	$(BIN)/python -m tokensieve.eval.inside

results-adaptive: .venv/.test  ## Measure adaptive counts, and whether what is kept is stable
	$(TRAIN) tokensieve.eval.adaptive
	$(TRAIN) tokensieve.eval.stability

results-fusion: .venv/.test  ## Measure selection and fusion beside each other (after make fusion)
	$(TRAIN) tokensieve.eval.run experiments/fusion.json
	$(BIN)/python benchmarks/fusion.py
	$(BIN)/python -m tokensieve.eval.fusion_page

results-worlds: .venv/.train  ## Extract and train for random SigLIP, InternVL and Qwen towers
	sh experiments/worlds.sh $(BIN)/python runs/worlds
	$(BIN)/python -m tokensieve.eval.worlds runs/worlds

rates: .venv/.train  ## Measure encoders and training steps of real sizes on this machine
	$(TRAIN) tokensieve.eval.rates
	$(BIN)/python -m tokensieve.eval.training_page

receipts: .venv/.test  ## Text kept on real receipts: make receipts DATA=folder with img/ and box/
	$(BIN)/python -m tokensieve.eval.receipts --data $(DATA)

clean:  ## Remove the environment and everything built
	rm -rf .venv .venvs runs out .mypy_cache .ruff_cache .import_linter_cache
