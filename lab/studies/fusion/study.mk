.PHONY: fusion results-fusion

fusion: .venv/.train  ## Train nano's LLM under each way of having fewer tokens (after make nano; about 2 hours on 2 cores)
	$(TRAIN) lab.studies.fusion lab/studies/fusion/arms.json --data runs/nano \
		--out runs/fusion --shard 0/2 & other=$$!; $(TRAIN) lab.studies.fusion \
		lab/studies/fusion/arms.json --data runs/nano --out runs/fusion --shard 1/2 && wait $$other
	for arm in stf mlp; do sh lab/studies/fusion/arm-selector.sh $(BIN)/python runs/fusion/$$arm; done

results-fusion: .venv/.test  ## Measure selection and fusion beside each other (after make fusion)
	$(TRAIN) lab.run lab/studies/fusion/suite.json
	$(BIN)/python -m lab.studies.fusion.speed
	$(BIN)/python -m lab.studies.fusion.page
