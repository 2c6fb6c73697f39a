.PHONY: rates

rates: .venv/.train  ## Measure encoders and training steps of real sizes on this machine
	$(TRAIN) lab.studies.training.rates
	$(BIN)/python -m lab.studies.training.page
