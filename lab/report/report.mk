.PHONY: families gallery

families: .venv/.test  ## Table of families and sites, from the checks of tests/families
	PYTHONPATH=tests HF_HUB_OFFLINE=1 $(BIN)/python -m families.sites

gallery: .venv/.setup  ## Pictures of what methods keep: docs/results/gallery.md and the README's
	$(BIN)/python -m lab.report.gallery
