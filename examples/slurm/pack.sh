#!/bin/bash
# sbatch examples/slurm/pack.sh RECIPE SOURCE OUT [OPTIONS]: packs one data set on eight machines. Each writes its part of
# the shards; the one that finishes last writes dataset.json. A task that is preempted is requeued and resumes.
#SBATCH --job-name=wcord-pack
#SBATCH --array=1-8
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
set -u
[ $# -ge 2 ] || { echo "usage: sbatch $0 RECIPE SOURCE OUT [OPTIONS]" >&2; exit 2; }

part=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))
exec wcord pack "$@" --part "$part/$SLURM_ARRAY_TASK_COUNT" --workers "$SLURM_CPUS_PER_TASK"
