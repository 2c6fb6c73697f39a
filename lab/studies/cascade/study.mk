.PHONY: results-cascade

results-cascade: .venv/.test  ## Does asking again when unsure need fewer tokens under the same promise?
	$(BIN)/python -m lab.studies.cascade
