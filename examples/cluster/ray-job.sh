#!/bin/bash
# An ablation on the machines of a Ray cluster: bash examples/cluster/ray-job.sh http://HEAD:8265 /shared/ablation.yaml /shared/out
# kdalign is installed on every machine (pip install 'kdalign[ray]'). The recipe, its models and data, and OUT are on a
# disk that all of them share, with absolute paths: Ray runs the job in a folder of its own. The same line resumes it.
set -euo pipefail
usage="usage: ray-job.sh ADDRESS RECIPE OUT, the last two absolute"
recipe=${2:?$usage} out=${3:?$usage}
[[ $recipe == /* && $out == /* ]] || { echo "$usage" >&2; exit 2; }
exec ray job submit --address "$1" -- kdalign ablate --recipe "$recipe" --out "$out" --engine ray --ray-address auto
