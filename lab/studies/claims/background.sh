#!/bin/sh
# Go on with the queue of this study where it takes idle time only:
# lab/studies/claims/background.sh RUNS [option of the queue ...]; RUNS/store is made if it is not
# there, of MODEL and IMAGES. Its own session is a scheduling group of its own, of priority NICE, by
# default the lowest: beside busy processes it then hardly gets on.
set -e
cd "$(dirname "$0")/../../.."
runs=$1
shift
mkdir -p "$runs"
export PYTHONPATH="$PWD/src:$PWD" OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=33000000 \
	MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=134217728
export PYTHON="${PYTHON:-python}" RUNS="$runs" MODEL="${MODEL:-nano}" NICE="${NICE:-19}"
export IMAGES="${IMAGES:-synth:mix:192}"
setsid nohup sh -c '
	echo "$NICE" > /proc/self/autogroup 2>/dev/null || true
	echo $$ > "$RUNS/queue.pid"
	if [ ! -e "$RUNS/store.made" ]; then
		nice -n "$NICE" "$PYTHON" -m tokensieve extract --model "$MODEL" --site features --pixels \
			--images "$IMAGES" --out "$RUNS/store" || exit 1
		touch "$RUNS/store.made"
	fi
	exec nice -n "$NICE" "$PYTHON" -m lab.studies.claims.queue --features "$RUNS/store" \
		--out "$RUNS/trained" "$@"
' sh "$@" >> "$runs/queue.log" 2>&1 < /dev/null &
