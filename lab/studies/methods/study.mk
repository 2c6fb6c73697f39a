.PHONY: results-methods

results-methods: .venv/.test  ## Measure every method beside every other (resumes)
	$(TRAIN) lab.run lab/studies/methods/suite.json --shard 0/2 & other=$$!; \
		$(TRAIN) lab.run lab/studies/methods/suite.json --shard 1/2 && wait $$other
	$(TRAIN) lab.benchmarks.whole_pass
	$(BIN)/python -m lab.studies.methods.page
