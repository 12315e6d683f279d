#!/bin/bash
# sbatch examples/slurm/train.sh CONFIG [OVERRIDES]: trains on two machines of eight GPUs; preempted or out of time, the
# run writes a checkpoint, the job goes back into the queue, and goes on from there.
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
# The launcher kills what has not ended so many seconds after it handed on a signal; 30 if nothing is said.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=280
preempted=

# Slurm's warning, five minutes before the time is over, or at preemption: every rank ends its step and saves.
stop() {
    preempted=yes
    echo "asked to stop: saving, then back into the queue"
    scancel --signal=TERM "$SLURM_JOB_ID.0"
}
trap stop USR1 TERM

srun --kill-on-bad-exit=0 bash -c 'exec accelerate launch --config_file configs/accelerate/two_machines.yaml \
    --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * 8)) --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$HEAD" --main_process_port "$PORT" -m pipeline train "$@" --resume' wcord "$@" &
srun=$!
wait $srun
code=$?
if [ -n "$preempted" ]; then
    wait $srun # the first wait was ended by the signal itself
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit $code
