#!/bin/bash
# One search as a SLURM job: a Ray cluster on the nodes of the job, for as long as the job lasts.
#   sbatch --nodes 3 --gpus-per-node 1 clusters/slurm.sh experiments/mnist_vgg.py runs/first
# The experiment, the run folder and the environment have to be on a file system that all nodes see.
#SBATCH --job-name=autocompress
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=1-00:00:00
#SBATCH --requeue
# Two minutes before its time is up, or when it is preempted, this script is told, and tells the search.
#SBATCH --signal=B:TERM@120
set -euo pipefail
experiment=$1 run=$2
source .venv/bin/activate

# Nobody else on the network may use this cluster: srun hands the token to every node.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_worker_niceness=0 RAY_USAGE_STATS_ENABLED=0

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((10000 + SLURM_JOB_ID % 20000))

on_head() { srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" "$@"; }
on_head ray start --head --block --node-ip-address="$address" --port="$port" --include-dashboard=false \
    --num-cpus="$SLURM_CPUS_PER_TASK" --resources '{"latency_lane": 1}' &
until on_head ray status --address "$address:$port" >/dev/null 2>&1; do sleep 2; done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
        ray start --block --address="$address:$port" --num-cpus="$SLURM_CPUS_PER_TASK" &
fi

# What was begun is gone on with, also when SLURM has put the job into its queue again.
if [ -e "$run/run.json" ]; then
    command=(autocompress resume "$run")
else
    command=(autocompress search "$experiment" --run "$run")
fi
on_head "${command[@]}" --address "$address:$port" &
search=$!
trap 'kill -TERM "$search"' TERM
wait "$search" || wait "$search"
