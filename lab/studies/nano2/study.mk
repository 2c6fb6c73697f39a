.PHONY: nano2-selector results-nano2 nano2-methods nano2-gallery

nano2-selector: .venv/.train  ## Train three selectors of nano 2 on 1,600 pages (resumes)
	$(TRAIN) lab.studies.nano2.pictures --out $(NANO2)/pictures --number 1600
	$(TRAIN) tokensieve extract --model nano2 --images $(NANO2)/pictures --site features \
		--pixels --out $(NANO2)/store
	for seed in 0 1 2; do $(TRAIN) tokensieve train selector --features $(NANO2)/store --holdout 0 \
		--config lab/nano2/selector.json --seed $$seed --threads 1 \
		--out $(NANO2)/selector/seed$$seed || exit 1; done

results-nano2: .venv/.test  ## Records, tables and figures of nano 2's suite (resumes)
	$(TRAIN) lab.run lab/studies/nano2/suite.json --shard 0/2 & other=$$!; \
		$(TRAIN) lab.run lab/studies/nano2/suite.json --shard 1/2 && wait $$other
	$(TRAIN) lab.benchmarks.whole_pass --model nano2 --world nano2 \
		--weights $(NANO2)/selector/seed0/selector \
		--methods full,selector,random,stride,avgpool,downsample,divprune,feature-norm,pixel-variance
	$(BIN)/python -m lab.studies.nano2.page

nano2-methods: .venv/.test  ## Every method before the LLM on nano 2, and with the question in front
	for suite in methods first; do \
		$(TRAIN) lab.run lab/studies/nano2/$$suite.json --limit 100 --shard 0/2 & other=$$!; \
		$(TRAIN) lab.run lab/studies/nano2/$$suite.json --limit 100 --shard 1/2 && wait $$other || exit 1; \
	done
	$(BIN)/python -m lab.studies.nano2.contest

nano2-gallery: .venv/.setup  ## Pictures of what methods keep for nano 2
	$(BIN)/python -m lab.studies.nano2.gallery --model nano2
