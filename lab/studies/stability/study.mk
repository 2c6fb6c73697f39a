.PHONY: results-stability

results-stability: .venv/.test  ## Measure whether what is kept is stable
	$(TRAIN) lab.studies.stability.measure
