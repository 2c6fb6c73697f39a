.PHONY: results-mirror

results-mirror: .venv/.test  ## Do mirrored pictures keep mirrored tokens?
	$(TRAIN) lab.studies.mirror.measure
