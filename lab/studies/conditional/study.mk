.PHONY: conditional results-conditional

conditional: .venv/.train  ## Train the reader of questions in front, and the selector inside it (after make nano)
	$(TRAIN) lab.studies.conditional.ask_first --data runs/nano --out runs/ask-first
	$(TRAIN) lab.studies.conditional.hidden --data runs/nano --out runs/hidden \
		--reader runs/ask-first/reader.safetensors --layers 1
	$(TRAIN) tokensieve train selector --features runs/hidden/layer1 --holdout 0 --threads 1 \
		--config lab/studies/conditional/selector.json --out runs/conditional

results-conditional: .venv/.test  ## Measure selection inside the LLM
	$(TRAIN) lab.run lab/studies/conditional/suite.json
	$(BIN)/python -m lab.studies.conditional.page
