#!/bin/bash
# A recipe on several machines, through time limits and preemption:
#
#   sbatch --nodes 2 recipes/configs/slurm/train.sh recipes/vision.py --dataset_name ... --output_dir SHARED/run
#
# --output_dir must be on a disk that all machines see; python is that of the environment from which you submit.
#SBATCH --job-name=hf_transfer
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
# The signal comes this many seconds before the limit: time for a step, a batch of evaluation and a checkpoint.
#SBATCH --signal=SIGUSR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -u

# For a model whose training does not fit on one GPU (see recipes/configs/accelerate/fsdp.yaml):
# export ACCELERATE_USE_FSDP=true FSDP_VERSION=2

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
# Newer versions of srun do not take this from sbatch.
SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export MASTER_ADDR MASTER_PORT SRUN_CPUS_PER_TASK OMP_NUM_THREADS="$SRUN_CPUS_PER_TASK"

# srun starts every process itself. Slurm signals the tasks of a step and, with cgroups, not their children: processes
# that torchrun or accelerate had started would not get the signal, torchrun itself would be ended by SIGUSR1, and both
# turn our exit code into 1. Without them, srun ends all processes when one dies.
# shellcheck disable=SC2016 (each task must read its own numbers)
srun --kill-on-bad-exit=1 bash -c '
    export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_NTASKS"
    export LOCAL_RANK="$SLURM_LOCALID" LOCAL_WORLD_SIZE="$SLURM_NTASKS_PER_NODE"
    exec "$@"' task python "$@"
code=$?

# 143: the recipe has saved, and the same command resumes. 138: SIGUSR1 came before the recipe handled signals.
case $code in
138 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
*) exit "$code" ;;
esac
