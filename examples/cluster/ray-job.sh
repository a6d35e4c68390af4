#!/bin/bash
# An ablation on the machines of a Ray cluster: bash examples/cluster/ray-job.sh http://HEAD:8265 ablation.yaml
# The folder from which it is called goes to the cluster, where kdalign is installed on every machine (pip install
# 'kdalign[ray]'); models, data and runs are on a disk that all of them share.
set -euo pipefail
recipe=${2:?usage: ray-job.sh ADDRESS RECIPE}
exec ray job submit --address "$1" --working-dir . -- kdalign ablate --recipe "$recipe" --engine ray --ray-address auto
