.PHONY: results-ablations

ABLATE := $(TRAIN) lab.trained.train lab/studies/ablations/suite.json --features $(STORE) \
	--out runs/ablations

results-ablations: store .venv/.test  ## Train and measure every ablation (about 2 hours on 2 cores)
	$(ABLATE) --shard 0/2 & other=$$!; $(ABLATE) --shard 1/2 && wait $$other
	$(BIN)/python -m lab.studies.ablations lab/studies/ablations/suite.json
