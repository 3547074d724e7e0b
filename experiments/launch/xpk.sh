#!/bin/bash
# A sweep on GKE by XPK, one trial a workload:
#   CLUSTER=mine TPU=v5litepod-16 IMAGE=gcr.io/me/alignax STORAGE=shared \
#     experiments/launch/xpk.sh sweep.yaml --out /shared/sweep
# The image has alignax and the file; STORAGE is one of `xpk storage list`, mounted where
# --out says. Kueue starts what fits, and starts again what is preempted.
set -eu
count=$(alignax sweep "$@" --list | wc -l)
printf -v sweep '%q ' alignax sweep "$@"
for ((i = 0; i < count; i++)); do
  xpk workload create --cluster "$CLUSTER" --workload "${NAME:-sweep}-$i" \
    --tpu-type "$TPU" --docker-image "$IMAGE" --storage "$STORAGE" \
    --max-restarts 10 --command "$sweep --index $i"
done
