#!/bin/bash
# A sweep as a Slurm array, one trial a job:
#   experiments/launch/slurm_array.sh sweep.yaml [--out FOLDER] -- --gres=gpu:1 --time=4:00:00
# The folder is on a file system that all nodes see. A job that Slurm takes back saves
# itself and is queued again; with rungs, run this once for each and once more.
set -eu
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
[ $# -gt 0 ] && shift
last=$(( $(alignax sweep "${options[@]}" --list | wc -l) - 1 ))
printf -v sweep '%q ' alignax sweep "${options[@]}"
sbatch --array="0-$last" --requeue --signal=TERM@120 "$@" --wrap "
srun $sweep--index \$SLURM_ARRAY_TASK_ID || code=\$?
[ \"\${code:-0}\" != 75 ] || scontrol requeue \${SLURM_ARRAY_JOB_ID}_\$SLURM_ARRAY_TASK_ID
exit \${code:-0}"
