#!/bin/sh
# The first 25 minutes on a GPU: everything that only a GPU can tell, most wanted first, every stage bounded in time.
# A stage that fails or runs out of time costs the later ones nothing; what was measured until then is kept. From the
# repository's root: tests/gpu_session.sh [FOLDER], by default kernels/measured; STAGES="tests step" runs only those.
# SMALL=1 walks through all of it on a tiny model without a GPU.
set -u
out=${1:-kernels/measured}
stages=${STAGES:-"check tests step tune keystroke rest"}
bin=${BIN:-.venv/bin}
export TRITON_INTERPRET=0 PYTHONUNBUFFERED=1
mkdir -p "$out"
device=cuda small="" fills=30 random="--random-weights --loop device"
if [ "${SMALL:-}" = 1 ]; then
    device=cpu small=--small fills=2 random="--random-weights --loop device --small"
    export TRITON_INTERPRET=1
fi
failed=""

stage() { # NAME SECONDS COMMAND...
    name=$1 seconds=$2
    shift 2
    echo "== $name (at most $seconds s): $*"
    begin=$(date +%s)
    timeout "$seconds" "$@" 2>&1 | tee "$out/session-$name.log"
    # The status of a pipeline is that of tee; the log's last line says how the command ended.
    echo "== $name took $(($(date +%s) - begin)) s"
}

wanted() { case " $stages " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

run() { # NAME SECONDS COMMAND...: as `stage`, and remembers what failed
    label=$1 limit=$2
    shift 2
    stage "$label" "$limit" sh -c '"$@"; status=$?; echo "exit status $status"; exit $status' sh "$@"
    tail -n 1 "$out/session-$label.log" | grep -q '^exit status 0$' || failed="$failed $label"
}

if wanted check; then
    run check 90 "$bin/python" -P -c "
import torch, triton
from stopgap.infill import devices
from stopgap.kernels.path import chosen
found = devices.found()[0]
print(devices.build(), 'triton', triton.__version__, found.title, found.capability, f'{(found.free or 0) / 1e9:.1f} GB free')
print('kernels', chosen(devices.resolve('$device')))
print(f'copies {devices.copy_bandwidth(devices.resolve(\"$device\"), __import__(\"time\").perf_counter) / 1e9:.0f} GB/s')"
fi
wanted tests && run tests 420 "$bin/pytest" -m gpu -rs --maxfail=5 --timeout=240 tests
# The sizes that the goals name, then transformers, then (`rest`) the whole table over the same record's name.
wanted step && run step 300 "$bin/stopgap" bench step --device "$device" $small --slots 32 --slots 256 \
    --prefix 2048 --repeats 20 --out "$out/first"
wanted keystroke && run keystroke 150 "$bin/stopgap" bench keystroke --fills "$fills" --device "$device" $random
wanted tune && run tune 280 "$bin/python" -P tests/tune_kernels.py --device "$device" $small --seconds 240 --out "$out"
wanted rest && run rest 420 "$bin/stopgap" bench step --device "$device" $small --out "$out"

echo
if [ -n "$failed" ]; then
    echo "FAILED:$failed; everything that was measured is in $out"
    exit 1
fi
echo "everything ran; results in $out"
