#!/bin/bash
# A sweep on TPU VMs that are there, the trials in turn on each:
#   ZONE=us-east5-a experiments/launch/tpu_vm.sh sweep.yaml vm-0 vm-1 vm-2
# alignax and the file are on every VM, in the folder WORK. A VM of several hosts runs
# each trial on all of them (base: {mesh: {coordinator: auto}}). Trials whose VM was
# lost go on when this is run again, where WORK is a disk that the VMs share.
set -eu
file=$1; shift
vms=("$@")
count=$(alignax sweep "$file" --list | wc -l)
for n in "${!vms[@]}"; do
  for ((i = n; i < count; i += ${#vms[@]})); do
    # No standard input: ssh would read the loop's.
    gcloud compute tpus tpu-vm ssh "${vms[$n]}" --zone "$ZONE" --worker=all \
      --command "cd ${WORK:-alignax} && .venv/bin/alignax sweep $file --index $i" \
      < /dev/null || echo "trial $i on ${vms[$n]}: exit code $?"
  done &
done
wait
