.PHONY: nano2 nano2-judge

NANO2 := runs/nano2
NANO2_MODEL := src/tokensieve/assets/nano2
LAB2 = $(TRAIN) lab.nano2

# Every stage goes on where it was and is passed over once done. The reader learns to find and to
# read on what a perfect encoder would say, which needs no encoder, then goes on behind the real one.
nano2: .venv/.train  ## Train nano 2, which reads typeset pages, from scratch (resumes; many hours of a core)
	$(LAB2).train_encoder --out $(NANO2)/encoder
	$(LAB2).features --out $(NANO2)/truth --pages 4000 --val 200
	$(LAB2).train_reader --features $(NANO2)/truth --out $(NANO2)/reader-truth
	$(LAB2).features --encoder $(NANO2)/encoder/encoder.safetensors --out $(NANO2)/features \
		--pages 6000 --val 200
	$(LAB2).train_reader --features $(NANO2)/features --out $(NANO2)/reader \
		--begin $(NANO2)/reader-truth/reader.safetensors
	$(LAB2).assemble --encoder $(NANO2)/encoder/encoder.safetensors \
		--reader $(NANO2)/reader/reader.safetensors --out $(NANO2_MODEL)

nano2-judge: .venv/.train  ## What nano 2 reads: fonts, layouts, light and dark, moved
	$(LAB2).judge --encoder $(NANO2)/encoder/encoder.safetensors \
		--reader $(NANO2)/reader/reader.safetensors --split test --pages 200 \
		--out results/nano2-reading/report.json
