#!/bin/bash
# A recipe on several machines, through time limits and preemption:
#
#   sbatch --nodes 2 recipes/configs/slurm/train.sh recipes/vision.py --dataset_name ... --output_dir SHARED/run
#
# --output_dir is to be on a disk that all machines see; python is that of the environment you submit from.
#SBATCH --job-name=hf_transfer
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
# Ahead of the limit by as many seconds as a step, an evaluation's batch and a checkpoint may take.
#SBATCH --signal=SIGUSR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -u

# For a model whose training does not fit on one GPU (see recipes/configs/accelerate/fsdp.yaml):
# export ACCELERATE_USE_FSDP=true FSDP_VERSION=2

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
# Newer versions of srun do not take this over from sbatch.
SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export MASTER_ADDR MASTER_PORT SRUN_CPUS_PER_TASK OMP_NUM_THREADS="$SRUN_CPUS_PER_TASK"

# srun starts every process itself. Slurm signals the tasks of a step and, with cgroups, not their children: what
# torchrun or accelerate had started would hear nothing, they themselves would be ended by SIGUSR1, and they turn our
# exit code into 1. Without them it is srun that ends all when one process dies.
# shellcheck disable=SC2016 (each task is to read its own numbers)
srun --kill-on-bad-exit=1 bash -c '
    export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_NTASKS"
    export LOCAL_RANK="$SLURM_LOCALID" LOCAL_WORLD_SIZE="$SLURM_NTASKS_PER_NODE"
    exec "$@"' task python "$@"
code=$?

# 143: the recipe has saved, and the same command goes on. 138: SIGUSR1 came before it listened.
case $code in
138 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
*) exit "$code" ;;
esac
