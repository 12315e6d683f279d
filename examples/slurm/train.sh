#!/bin/bash
# sbatch examples/slurm/train.sh CONFIG [OVERRIDES]: trains on two machines of eight GPUs. At preemption or the time limit,
# the run writes a checkpoint; the job is requeued and resumes from it.
#SBATCH --job-name=wcord
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -u
[ $# -ge 1 ] || { echo "usage: sbatch $0 CONFIG [OVERRIDES]" >&2; exit 2; }

export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export PORT=$((20000 + SLURM_JOB_ID % 20000))
# The launcher kills processes that are still running this many seconds after it forwarded a signal (default: 30).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=280
preempted=

# Slurm signals five minutes before the time limit, or at preemption: every rank finishes its step and saves.
stop() {
    preempted=yes
    echo "asked to stop: saving a checkpoint, then requeueing"
    scancel --signal=TERM "$SLURM_JOB_ID.0"
}
trap stop USR1 TERM

srun --kill-on-bad-exit=0 bash -c 'exec accelerate launch --config_file configs/accelerate/two_machines.yaml \
    --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * 8)) --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$HEAD" --main_process_port "$PORT" -m wcord train "$@" --resume' wcord "$@" &
srun=$!
wait $srun
code=$?
if [ -n "$preempted" ]; then
    wait $srun # the signal interrupted the first wait
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit $code
