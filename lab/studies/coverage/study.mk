.PHONY: results-coverage

results-coverage: .venv/.test  ## Is the promise of keep="auto" kept? 1,000 splits of nano's answers
	$(BIN)/python -m lab.studies.coverage
