#!/bin/bash
# A run on several machines by Slurm: sbatch examples/cluster/slurm.sh recipe.yaml runs/mine
# One task a machine; each starts torchrun, which starts a process for each GPU. The run folder is on a shared disk.
# A job that is preempted, or near its time, is queued again and goes on from its last checkpoint by the same command.
#SBATCH --job-name=kdalign
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
set -euo pipefail

recipe=${1:?usage: sbatch slurm.sh RECIPE OUT}
out=${2:?usage: sbatch slurm.sh RECIPE OUT}
processes=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
# All ranks meet at the first machine, on a port that no other job there has.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

queue_again() {
    kill -TERM "$step"
    wait "$step" || true # the ranks save what they have
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap queue_again TERM

srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "$processes" \
    --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "$first:$port" \
    -m kdalign distill --recipe "$recipe" --out "$out" --resume &
step=$!
wait "$step"
