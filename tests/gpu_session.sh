#!/bin/sh
# The first 25 minutes on a GPU: everything that only a GPU can tell, most wanted first, every stage bounded in time.
# A stage that fails or runs out of time costs the later ones nothing; what was measured until then is kept, and what
# `report` makes of it too. From the repository's root:
#   tests/gpu_session.sh [FOLDER]     records go there, by default into kernels/measured; block sizes into kernels/data
#   STAGES="check tests"              runs only those, where one command may not take that long
#   SMALL=1                           rehearses all of it on a tiny model without a GPU; nothing goes into kernels/
# Nothing is downloaded. Without .venv it takes PYTHON (python3) and the repository as it lies there; `check` says what
# that Python lacks.
set -u
stages=${STAGES:-"check tests step keystroke tune rest report"}
bin=${BIN:-.venv/bin}
if [ -x "$bin/python" ]; then
    python=$bin/python
else
    python=${PYTHON:-python3}
    export PYTHONPATH="$PWD/.ns${PYTHONPATH:+:$PYTHONPATH}"
fi
export TRITON_INTERPRET=0 PYTHONUNBUFFERED=1
if [ "${SMALL:-}" = 1 ]; then
    out=${1:-$(mktemp -d)}
    device=cpu small=--small fills=2 search=0 sizes="--slots 16 --prefix 20 --repeats 1" table=$out/data
    export TRITON_INTERPRET=1
else
    out=${1:-kernels/measured}
    device=cuda small="" fills=30 search=240 sizes="--slots 32 --slots 256 --prefix 2048 --repeats 20" table=kernels/data
fi
mkdir -p "$out"
failed=""

run() { # NAME SECONDS COMMAND...: what it says goes into a file too; remembers what failed
    name=$1 seconds=$2
    shift 2
    case " $stages " in *" $name "*) ;; *) return ;; esac
    echo "== $name (at most $seconds s): $*"
    begin=$(date +%s)
    # The status of a pipeline is that of tee, so the command's own goes into a file.
    { timeout -k 10 "$seconds" "$@" 2>&1; echo $? >"$out/status"; } | tee "$out/session-$name.log"
    status=$(cat "$out/status")
    rm -f "$out/status"
    [ "$status" = 0 ] || failed="$failed $name($status)"
    echo "== $name ended with $status after $(($(date +%s) - begin)) s"
}

stopgap() { # NAME SECONDS ARGUMENTS...
    name=$1 seconds=$2
    shift 2
    run "$name" "$seconds" "$python" -P -m stopgap.daemon "$@"
}

run check 120 "$python" -P tests/gpu_check.py "$device"
# shellcheck disable=SC2046
run tests 420 "$python" -P -m pytest -m gpu -rs --maxfail=5 --timeout=240 -W ignore::pytest.PytestConfigWarning \
    $(grep -l 'mark\.gpu' tests/test_*.py)
# The sizes that the goals name, then keystrokes, then block sizes, then (`rest`) the whole table with those.
# shellcheck disable=SC2086
stopgap step 300 bench step --device "$device" $small $sizes --out "$out/first"
# shellcheck disable=SC2086
stopgap keystroke 150 bench keystroke --fills "$fills" --device "$device" $small --random-weights --loop device \
    --out "$out"
# shellcheck disable=SC2086
run tune 280 "$python" -P tests/tune_kernels.py --device "$device" $small --seconds "$search" --out "$out" \
    --table "$table"
# shellcheck disable=SC2086
stopgap rest 420 bench step --device "$device" $small --out "$out"
for record in "$out/first"/*.json "$out"/*.json; do
    case $record in *-tuning.json | *-keystroke.json | *\*.json) continue ;; esac
    stopgap report 30 bench report "$record"
done

echo
if [ -n "$failed" ]; then
    echo "FAILED:$failed; everything that was measured is in $out"
    exit 1
fi
echo "everything ran; results in $out"
