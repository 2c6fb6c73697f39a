.PHONY: results-methods

results-methods: .venv/.test  ## Measure every method beside every other
	$(TRAIN) lab.run lab/studies/methods/suite.json
	$(TRAIN) lab.benchmarks.whole_pass
	$(BIN)/python -m lab.studies.methods.page
