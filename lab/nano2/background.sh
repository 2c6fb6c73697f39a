#!/bin/sh
# Run a module of the recipe where it takes idle time only: background.sh MODULE OUT [option ...]
# Its own session is a scheduling group of its own, set to the lowest priority before python starts.
set -e
cd "$(dirname "$0")/../.."
module=$1 out=$2
shift 2
mkdir -p "$out"
export PYTHONPATH="$PWD/src:$PWD" OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=33000000 \
	MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=134217728
export PYTHON="${PYTHON:-python}" MODULE="$module" OUT="$out"
setsid nohup sh -c '
	echo 19 > /proc/self/autogroup 2>/dev/null || true
	echo $$ > "$OUT/$MODULE.pid"
	exec nice -n 19 "$PYTHON" -m "lab.nano2.$MODULE" --out "$OUT" "$@"
' sh "$@" > "$out/$module.out" 2>&1 < /dev/null &
