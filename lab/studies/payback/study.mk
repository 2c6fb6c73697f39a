.PHONY: results-payback

PAYBACK := lab/studies/payback/suite.json

results-payback: store .venv/.test  ## What the selector's width and depth cost and are worth
	$(TRAIN) lab.studies.payback.train $(PAYBACK) --features $(STORE)
	$(TRAIN) lab.run $(PAYBACK)
	$(TRAIN) lab.studies.payback.measure $(PAYBACK)
