.PHONY: nano store selector control

nano: .venv/.setup  ## Train the embedded model from scratch (resumes; about an hour on 2 cores)
	$(TRAIN) lab.nano --stage all --out runs/nano

STORE := runs/nano/store-embeds

# Always run: it goes on, finds nothing to do, or says that another nano made what is there.
store: .venv/.train
	$(TRAIN) tokensieve extract --model nano --images synth:mix:4000 --site embeds --pixels \
		--out $(STORE)

selector: store  ## Train nano's selector, three seeds (about 20 minutes on one core)
	for seed in 0 1 2; do $(TRAIN) tokensieve train selector --features $(STORE) --holdout 0 \
		--config lab/nano/selector.json --seed $$seed --threads 1 \
		--out runs/presets/default/seed$$seed || exit 1; done

control: .venv/.setup  ## Train the control: nano's language model, never shown a shortened sequence
	$(TRAIN) lab.nano --stage only-control --config lab/nano/control.json \
		--out runs/nano-control
