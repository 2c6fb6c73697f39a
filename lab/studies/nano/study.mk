.PHONY: results presets

results: .venv/.test  ## Rebuild records, tables and plots (resumes; under an hour on 2 cores)
	$(TRAIN) lab.run lab/studies/nano/suite.json --shard 0/2 & other=$$!; \
		$(TRAIN) lab.run lab/studies/nano/suite.json --shard 1/2 && wait $$other
	$(BIN)/python -m lab.studies.nano.page

presets: store  ## Train the papers' presets on the same features for the same steps
	sh lab/studies/nano/presets.sh $(BIN)/python $(STORE)
