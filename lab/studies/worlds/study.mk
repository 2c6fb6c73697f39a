.PHONY: results-worlds

results-worlds: .venv/.train  ## Extract and train for random SigLIP, InternVL and Qwen towers
	sh lab/studies/worlds/train.sh $(BIN)/python runs/worlds
	$(BIN)/python -m lab.studies.worlds.page runs/worlds
