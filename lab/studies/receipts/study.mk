.PHONY: receipts

# MODEL="--model nano2" for another one; BASE=--base for crops of LLaVA-NeXT.
receipts: .venv/.test  ## Words kept whole and read of real receipts: make receipts DATA=folder with img/ and box/
	for half in val test; do \
		$(BIN)/python -m lab.studies.receipts --data $(DATA) --half $$half $(MODEL) $(BASE) && \
		$(BIN)/python -m lab.studies.receipts.reading --data $(DATA) --half $$half --limit 40 \
			$(MODEL) $(BASE) && \
		$(BIN)/python -m lab.studies.receipts.reading --pages 100 --half $$half $(MODEL) \
			|| exit 1; done
	$(BIN)/python -m lab.studies.receipts.page
