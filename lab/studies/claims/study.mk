.PHONY: claims results-claims

CLAIMS := runs/claims

claims: .venv/.train  ## Train and measure the papers' systems in the background (resumes; hours; NICE=0 for haste)
	PYTHON=$(BIN)/python lab/studies/claims/background.sh $(CLAIMS)

results-claims: .venv/.test  ## Write the page of the papers' claims, and measure the masks' stability
	weights=$$($(BIN)/python -m lab.studies.claims.queue --folders best-second \
		--out $(CLAIMS)/trained); if [ -n "$$weights" ]; then $(TRAIN) lab.studies.stability.measure \
		--weights $$weights --out results/claims-stability --root $(CLAIMS)/stability; fi
	$(BIN)/python -m lab.studies.claims.page
