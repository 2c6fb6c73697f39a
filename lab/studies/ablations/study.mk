.PHONY: results-ablations

results-ablations: store .venv/.test  ## Train and measure every ablation (about 2 hours on 2 cores)
	$(TRAIN) lab.studies.ablations.train lab/studies/ablations/suite.json --features $(STORE) \
		--shard 0/2 & other=$$!; $(TRAIN) lab.studies.ablations.train lab/studies/ablations/suite.json \
		--features $(STORE) --shard 1/2 && wait $$other
	$(BIN)/python -m lab.studies.ablations lab/studies/ablations/suite.json
