#!/bin/bash
# sbatch docs/jobs/slurm.sh --dataset photos/ --fine-tune.epochs 20     (the options of `run`)
# One worker per node, with all GPUs of the node. A job that reaches its time limit, or loses a worker, is queued again and continues.
#SBATCH --job-name=transfer-learning
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

run_dir=runs/slurm-$SLURM_JOB_ID # the same after a requeue
options=(--run-dir "$run_dir" "$@")
[ -e "$run_dir/config.json" ] && options=(--resume "$run_dir")

srun --kill-on-bad-exit=1 transfer-learning run "${options[@]}"
code=$?
case $code in
  5 | 137 | 138) scontrol requeue "$SLURM_JOB_ID" ;; # lost a worker; one was killed; SIGUSR1 came
esac
exit $code
