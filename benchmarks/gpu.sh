#!/bin/sh
# Check and measure kdalign on a CUDA GPU in at most eight minutes:
#
#     sh benchmarks/gpu.sh [FOLDER]
#
# from the repository's root, with kdalign's packages in python3 (or $PYTHON). With trl among them, its GKD trainer is
# measured, too. Models have the shapes of MiniLM-L6 and SmolLM2-135M, weights and texts are random: nothing is fetched.
# What is printed is kept in FOLDER/log (default: gpu-results). ANY_DEVICE=1 tries the script where there is no GPU.
set -u
python=${PYTHON:-python3}
out=${1:-gpu-results}
here=$(cd "$(dirname "$0")/.." && pwd)
[ "${ANY_DEVICE:-}" ] || "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "torch sees no CUDA device here" >&2
  exit 2
}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
export PYTHONPATH="$here:$here/tests${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 KDALIGN_CACHE="$out/cache"
small=${ANY_DEVICE:+--small}


part() { # seconds, what it is, command
  limit=$1 what=$2
  shift 2
  echo "== $what: $*"
  timeout "$limit" "$@" || {
    echo "== failed ($?): $what"
  }
}

measure() {
  command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
  "$python" -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'
  cd "$here" || return
  part 180 "the contract" "$python" -m pytest -q -p no:cacheprovider tests/contract/test_cuda.py
  rm -rf "$out/models"
  part 60 "models" "$python" -m benchmarks.shapes "$out/models" $small
  cd "$out/models" || return
  part 60 "MiniLM to 3 layers, joint" "$python" -m benchmarks.step sst2.yaml --steps 60 --warm-up 20
  part 60 "the same in float32" "$python" -m benchmarks.step sst2.yaml train.precision=fp32 --steps 30 --warm-up 10
  trl=$("$python" -c 'import importlib.util as u; print("--trl-here" if u.find_spec("trl") else "")')
  layers=${ANY_DEVICE:+1} rows=${ANY_DEVICE:+2} length=${ANY_DEVICE:+64}
  part 120 "SmolLM2 to 15 layers, forward KL" "$python" -m benchmarks.on_policy --teacher smollm2 $trl --kinds off-policy \
    --layers "${layers:-15}" --rows "${rows:-8}" --length "${length:-1024}" --steps 10 --rounds 2
}

measure 2>&1 | tee "$out/log"
grep -q '^== failed' "$out/log" && exit 1
exit 0
