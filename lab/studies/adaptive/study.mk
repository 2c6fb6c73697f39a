.PHONY: results-adaptive

results-adaptive: .venv/.test  ## Measure adaptive counts
	$(TRAIN) lab.studies.adaptive.measure
