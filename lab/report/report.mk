.PHONY: families gallery

families: .venv/.test  ## Table of families, sites and modes, from the checks of tests/families
	PYTHONPATH=tests HF_HUB_OFFLINE=1 $(BIN)/python -m families.page

gallery: .venv/.setup  ## Pictures of what methods keep: docs/results/gallery.md and the README's
	$(BIN)/python -m lab.report.gallery
