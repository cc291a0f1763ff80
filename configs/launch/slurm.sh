#!/usr/bin/env bash
# Two machines of four GPUs each, for longer than one job may last:  sbatch configs/launch/slurm.sh WORDS-OF-FIT...
#   sbatch configs/launch/slurm.sh --config configs/sft.yaml --data.global_batch_size 64
# Three minutes before the time is over, and at a preemption, SLURM sends SIGTERM to all processes: they finish the step,
# save last.ckpt and exit with 143. The job is then put into the queue again, and the same command resumes.
#SBATCH --job-name=smollit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# The run folder, SMOLLIT_CACHE and HF_HOME must be on storage that all machines share. Not SIGUSR1: Lightning would
# write a checkpoint of its own, which smollit does not resume from.
set -uo pipefail
srun --kill-on-bad-exit=0 --wait=300 python -m smollit fit "$@" --trainer.strategy "${STRATEGY:-ddp}" \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE"
code=$?
if ((code == 143 && ${SLURM_RESTART_COUNT:-0} < 100)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
