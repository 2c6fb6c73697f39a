#!/bin/sh
# Selectors of what an arm's LLM reads: sh lab/studies/fusion/arm-selector.sh PYTHON ARM, after its training.
# The recipe of nano's own selector, on the embeddings of each seed of the arm.
set -eu
python=$1
for folder in "$2"/seed*; do
  "$python" -m tokensieve extract --model "$folder/model" --images synth:mix:3000 --site embeds \
    --out "$folder/store"
  "$python" -m tokensieve train selector --features "$folder/store" --holdout 0 \
    --config lab/nano/selector.json --seed "${folder##*seed}" --threads 1 \
    --out "$folder/selector"
done
