#!/bin/bash
# One node's processes; run by srun on each node of a job.
#
# Nodes are numbered by Slurm and not by a rendezvous, which sorts their names: n10 before n9. So
# rank 0 and the store that all meet at are on the node that MASTER_ADDR names.

# As many as there are GPUs, however the cluster says it (a100:8 is one of its forms).
for gpus in "$NPROC_PER_NODE" "$SLURM_GPUS_ON_NODE" "${SLURM_GPUS_PER_NODE##*:}" "$TASKS_PER_NODE"; do
  if ((gpus > 0)); then break; fi
done
# Slurm signals all of a step's processes, so torchrun needs no word of it from here.
trap : TERM
torchrun \
  --nnodes="$SLURM_NNODES" \
  --node_rank="$SLURM_NODEID" \
  --nproc_per_node="$gpus" \
  --master_addr="$MASTER_ADDR" \
  --master_port="$MASTER_PORT" \
  launch/generate.py "$@"
code=$?
# Ended by another node's failure before torchrun could say so itself: as it does later on. srun's
# exit code is the highest of all nodes, and SIGTERM's would hide the SIGKILL of a node that is lost.
exit $((code == 143 ? 1 : code))
