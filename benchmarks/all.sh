#!/usr/bin/env bash
# Everything that is measured on a GPU, in steps of at most nine minutes: benchmarks/all.sh [STEP …]
#
# Steps, in their order, the most telling first: tests kernels patterns suite skeletons rest. Results go to the folder $RESULTS
# (benchmarks/results by default). A step that is stopped, or of which something fails, leaves what it has measured.
set -uo pipefail
cd "$(dirname "$0")/.."
results=${RESULTS:-benchmarks/results}
status=0

# run MINUTES MODULE [ARGUMENTS …]: results in $results/MODULE, or where --out says. A benchmark ends by itself in time;
# timeout is for what hangs.
run() {
    local minutes=$1 module=$2
    shift 2
    echo "== benchmarks.$module, $minutes minutes =="
    timeout --kill-after=10 "$(awk "BEGIN {print int(60 * $minutes) + 20}")" \
        python -m "benchmarks.$module" --minutes "$minutes" --out "$results/$module" "$@" || status=1
}

if [ $# -eq 0 ]; then set -- tests kernels patterns suite skeletons rest; fi
for step in "$@"; do
    case $step in
    tests)
        run 4.5 gpu_tests
        run 3.5 host
        ;;
    kernels) run 8 kernels ;;
    patterns) run 8 patterns ;;
    suite) run 8 run ;;
    skeletons) run 8 run --only '\[(skeletons|deterministic)\]' --out "$results/skeletons_timed" ;;
    rest)
        run 4 published
        run 4 sanitizer
        ;;
    *)
        echo "no step is called $step; there are tests, kernels, patterns, suite, skeletons, rest" >&2
        exit 2
        ;;
    esac
done
exit $status
