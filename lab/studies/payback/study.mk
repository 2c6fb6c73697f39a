.PHONY: results-payback

PAYBACK := lab/studies/payback/suite.json

# Trainings as short as this rank shapes, and no more; `make nano2-selector` has the features.
results-payback: .venv/.train  ## What the selector's width and depth cost and are worth, on nano 2
	$(TRAIN) lab.studies.payback.train $(PAYBACK) --features $(NANO2)/store --steps 80 \
		--set train.batch=8 --set reconstructor.depth=1 --set reconstructor.ffn=256
	$(TRAIN) lab.studies.payback.measure $(PAYBACK)
	$(TRAIN) lab.studies.payback.kept $(PAYBACK)
