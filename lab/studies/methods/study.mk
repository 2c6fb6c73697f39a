.PHONY: results-methods

results-methods: .venv/.test  ## Measure every method beside every other
	$(TRAIN) lab.run lab/studies/methods/suite.json
	$(TRAIN) lab.studies.methods.prefill
	$(BIN)/python -m lab.studies.methods.page
