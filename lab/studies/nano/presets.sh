#!/bin/sh
# The papers' presets on the features, for the steps and at the learning rate of what ships (1e-5, as
# the follow-up prints, is for 100 epochs). usage: lab/studies/nano/presets.sh PYTHON STORE
set -eu
python=$1 store=$2
train() {
  name=$1 seed=$2
  shift 2
  "$python" -m tokensieve train selector --features "$store" --holdout 0 --threads 1 \
    --seed "$seed" --steps 900 --out "runs/presets/$name/seed$seed" "$@"
}
short="--set train.batch=16 --set train.stages=1"
for seed in 0 1 2; do
  # shellcheck disable=SC2086
  train wlie "$seed" --preset when-less-is-enough --set train.lr=0.001 $short
done
# The norm as printed, on features as they are: it keeps all tokens for long, and goes on (log).
literal="--set selector.normalise=none --set objective.reduction=sample-l2 --set run.on_collapse=log"
for seed in 0 1; do
  # shellcheck disable=SC2086
  train wlie-literal "$seed" --preset when-less-is-enough --set train.lr=0.001 $short $literal
done
train adaptive 0 --preset adaptive --set train.lr=0.001 --set train.batch=16
