#!/bin/sh
# Towers that are not CLIP, with random weights: the same two commands for each.
# usage: lab/studies/worlds/train.sh PYTHON OUT [PICTURES STEPS]
set -eu
python=$1 out=$2 pictures=${3:-600} steps=${4:-100}
mkdir -p "$out"

# Pictures of many sizes, for the tower that takes them as they are.
[ -d "$out/sizes" ] || "$python" - "$out/sizes" "$pictures" <<'PY'
import sys
from pathlib import Path
from tokensieve.data.synth import generate
folder, count = Path(sys.argv[1] + ".part"), int(sys.argv[2])
folder.mkdir(exist_ok=True)
for i in range(count):
    kind = ("plain", "cluttered", "scene", "mixed")[i % 4]
    width, height = 96 + 24 * (i % 5), 96 + 24 * (i // 5 % 5)
    generate(kind, i, "train").image.crop((0, 0, width, height)).save(folder / f"{i:05d}.png")
folder.rename(sys.argv[1])
PY

for tower in siglip internvit qwen; do
  images="synth:mix:$pictures"
  [ "$tower" = qwen ] && images="sizes=$out/sizes"
  [ -f "$out/$tower/processor_config.json" ] ||
    "$python" -m tokensieve.hf.models.random "$tower" "$out/$tower"
  "$python" -m tokensieve extract --model "$out/$tower" --images "$images" --out "$out/$tower-store"
  for preset in default when-less-is-enough; do
    "$python" -m tokensieve train selector --features "$out/$tower-store" \
      --out "$out/$tower-$preset" --preset "$preset" --steps "$steps" --holdout 0.1 --threads 1 \
      --set train.lr=0.001 --set train.batch=16 --set train.stages=1
  done
done
