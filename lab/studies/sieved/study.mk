.PHONY: results-sieved results-skipping

results-sieved: .venv/.train  ## Train nano under sieves, to one model for many budgets and by stages; hours, not run yet
	$(TRAIN) lab.studies.sieved.measure lab/studies/sieved/recipes.json --out runs/sieved --shard 0/2 & \
		other=$$!; $(TRAIN) lab.studies.sieved.measure lab/studies/sieved/recipes.json --out runs/sieved \
		--shard 1/2 && wait $$other

results-skipping: .venv/.train  ## Train nano for 60 steps with tokens that skip layers, and without: minutes of a free core
	$(TRAIN) lab.studies.sieved.measure lab/studies/sieved/skipping.json --out runs/skipping --results results/skipping
