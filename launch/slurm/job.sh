# What the batch scripts share; sourced by them on a job's first node.
#
# Variables that change it: VENV (virtual environment, default .venv), NPROC_PER_NODE (processes a
# node, default: its GPUs), MASTER_ADDR, MASTER_PORT, MAX_RESTARTS (default 20).

# shellcheck source=/dev/null
source "${VENV:-.venv}/bin/activate" || exit

# Where the processes meet: on the first node, which this script runs on. Slurm's own address of it
# is there even where the node's name does not resolve.
node_address() {
  scontrol show node "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p' | head -n 1
}
export MASTER_ADDR=${MASTER_ADDR:-$(node_address "$SLURMD_NODENAME")}
# A port of its own for each job and array task of a node.
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
# Without GPUs, as many processes a node as there are tasks.
export NPROC_PER_NODE=${NPROC_PER_NODE:-}
export TASKS_PER_NODE=${SLURM_NTASKS_PER_NODE:-1}

# Queues the job again, to go on from its last checkpoint. Needs the reason.
queue_again() {
  if ((${SLURM_RESTART_COUNT:-0} >= ${MAX_RESTARTS:-20})); then
    echo "$1; queued again ${SLURM_RESTART_COUNT} times already, and not any more" >&2
    return
  fi
  echo "$1; queued again, to go on from the last checkpoint" >&2
  scontrol requeue "$SLURM_JOB_ID"
}

# Runs launch/generate.py on all GPUs of the job's nodes, and ends with its exit code.
run_on_all_nodes() {
  # One torchrun a node, bound to no part of it; when one fails the others end.
  srun --kill-on-bad-exit=1 --cpu-bind=none --ntasks="$SLURM_NNODES" --ntasks-per-node=1 \
    launch/slurm/node.sh "$@" &
  local step=$! code
  trap 'queue_again "the time limit comes"' USR1
  # A signal ends the first wait, and not the step.
  while true; do
    wait "$step"
    code=$?
    kill -0 "$step" 2>/dev/null || break
  done
  # SIGKILL comes from outside: a node that is lost, which Slurm notices much later than the others,
  # or its memory that ran out. Other signals are what srun ends the nodes with that did not fail.
  if ((code == 137)); then queue_again "a node's processes were killed"; fi
  exit "$code"
}
