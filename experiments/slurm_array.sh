#!/usr/bin/env bash
#SBATCH --job-name=two_stage
#SBATCH --array=0-4
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
# One seed a task, all into the same workdir (on a disk that all nodes see):
#
#     sbatch experiments/slurm_array.sh configs/two_stage.py:study runs/study
#
# A task that is stopped or killed goes on where it was when it is submitted again. When
# all are done, one more run with all seeds trains nothing, and writes the joint results:
#
#     python -m twostage_jax.main --config=configs/two_stage.py:study --workdir=runs/study
set -euo pipefail
# Without srun: each task is a run of its own, not a process of one large run.
exec python -m twostage_jax.main --config="$1" --workdir="$2" \
    --config.study.seeds="(${SLURM_ARRAY_TASK_ID},)"
