#!/usr/bin/env bash
# Everything that a GPU machine can say in ten minutes, without a network.
#
#   scripts/prove_on_gpu.sh WHEELS OUT [RUN]
#
# WHEELS  A folder of wheels, all of which are installed into a fresh environment; "-" takes the
#         Python that is active. On a machine with a network and the same Python:
#         pip wheel -w wheels ".[test,cuda]"
# OUT     A folder for the results, to be taken along: what each part printed, its JSON, the tiles
#         that were tuned, the proofs of the kernels, and the run.
# RUN     A run to go on with from its last checkpoint, as a copy in OUT/run; else a new one begins.
#
# Each part has its share of PROVE_SECONDS (600), is stopped after it, and leaves what it has. The
# exit code is 0 when the check and the tests found everything right.
set -uo pipefail

usage() {
    sed -n '2,/^set /p' "$0" | sed '/^set /d; s/^# \{0,1\}//' >&2
    exit 2
}
[ $# -ge 2 ] && [ $# -le 3 ] || usage
seconds=${PROVE_SECONDS:-600}
if ! [[ $seconds =~ ^[1-9][0-9]*$ ]]; then
    echo "PROVE_SECONDS must be a number of 1 or more but got '$seconds'" >&2
    exit 2
fi
wheels=$1 run=${3:-}
[ "$wheels" = - ] || [ -d "$wheels" ] || { echo "no folder of wheels: '$wheels'" >&2; exit 2; }
[ -z "$run" ] || [ -f "$run/config.json" ] || { echo "no run: '$run'" >&2; exit 2; }
[ -z "$run" ] || run=$(realpath "$run")
[ "$wheels" = - ] || wheels=$(realpath "$wheels")
mkdir -p "$2" && out=$(realpath "$2") || exit 2
[ ! -e "$out/run" ] || { echo "'$out/run' is there already; name another folder" >&2; exit 2; }
cd "$(dirname "$0")/.." || exit 2
end=$((SECONDS + seconds))
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 XDG_CACHE_HOME=$out/cache MLX_TLSTM_TUNING=$out/tuning.json

say() { echo "$*" | tee -a "$out/summary.txt"; }

# part NAME SHARE COMMAND …: runs it for SHARE of 600 parts of the time at most; its exit code.
part() {
    local name=$1 limit=$(($2 * seconds / 600)) begun=$SECONDS code
    shift 2
    ((limit > end - SECONDS)) && limit=$((end - SECONDS))
    if ((limit < 1)); then
        say "$name: left out, the time is up"
        return 124
    fi
    # An interrupted training writes a checkpoint, and interrupted tests say what failed.
    timeout --signal=INT --kill-after=10 "$limit" "$@" >"$out/$name.txt" 2>&1
    code=$?
    case $code in
        0) say "$name: done in $((SECONDS - begun)) s" ;;
        124 | 137) say "$name: stopped after $((SECONDS - begun)) s" ;;
        *) say "$name: exit code $code after $((SECONDS - begun)) s: $(tail -n 1 "$out/$name.txt")" ;;
    esac
    return $code
}

python=python
if [ "$wheels" != - ]; then
    environment=$(mktemp -d)
    trap 'rm -rf "$environment"' EXIT
    python3 -m venv "$environment" || exit 1
    python=$environment/bin/python
    mapfile -t files < <(find "$wheels" -name '*.whl' | sort)
    # MLX's CPU and CUDA wheels hold the same files.
    if printf '%s\n' "${files[@]}" | grep -q /mlx_cuda; then
        mapfile -t files < <(printf '%s\n' "${files[@]}" | grep -v /mlx_cpu)
    fi
    part install 200 "$python" -m pip install --quiet --no-index --no-deps "${files[@]}" || exit 1
fi

part check 120 "$python" -m mlx_tlstm.check --json "$out/check.json" --seconds "$((seconds / 6))"
checked=$?
tail -n 1 "$out/check.txt" | tee -a "$out/summary.txt"
# Whole layers first: each kernel takes seconds to compile, and the time may not do for all.
MLX_ENABLE_TF32=0 part tests 110 "$python" -m pytest -m cuda -v -p no:cacheprovider \
    tests/kernels/test_proof.py tests/kernels/test_kernels_layers.py tests
tested=$?
tail -n 1 "$out/tests.txt" | tee -a "$out/summary.txt"
part tune 60 "$python" scripts/tune.py --rounds 5 --seconds 1 \
    --output "$out/tuning.json" --json "$out/tune.json"
for table in kernels depth layers; do
    part "benchmark-$table" 40 "$python" scripts/benchmark.py "--$table" --rounds 3 --warmup 1 \
        --seconds 2 --skip-torch --markdown --json "$out/benchmark-$table.json"
done
if [ -n "$run" ]; then
    cp -r "$run" "$out/run" && part training 90 "$python" -m mlx_tlstm.train --resume "$out/run"
else
    part training 90 "$python" -m mlx_tlstm.train --out "$out/run"
fi

((checked == 0 && tested == 0))
