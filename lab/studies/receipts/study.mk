.PHONY: receipts

receipts: .venv/.test  ## Text kept on real receipts: make receipts DATA=folder with img/ and box/
	$(BIN)/python -m lab.studies.receipts --data $(DATA)
