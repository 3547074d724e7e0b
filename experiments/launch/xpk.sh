#!/bin/bash
# A sweep on GKE by XPK, one trial a workload:
#   CLUSTER=mine TPU=v5litepod-16 IMAGE=gcr.io/me/alignax \
#     experiments/launch/xpk.sh sweep.yaml --out /shared/sweep
# The image has alignax and the file; --out is on a storage that `xpk storage attach`
# mounts in all workloads. Kueue starts what fits, and starts again what is preempted.
set -eu
count=$(alignax sweep "$@" --list | wc -l)
printf -v sweep '%q ' alignax sweep "$@"
for ((i = 0; i < count; i++)); do
  xpk workload create --cluster "$CLUSTER" --workload "${NAME:-sweep}-$i" \
    --tpu-type "$TPU" --docker-image "$IMAGE" --max-restarts 10 \
    --termination-grace-period-seconds 120 --command "$sweep--index $i"
done
