.PHONY: results-steady

results-steady: .venv/.test  ## Do adaptive counts keep their average on foreign mixes of pictures?
	$(BIN)/python -m lab.studies.steady
