#!/usr/bin/env bash
# One node's part of a launch: torchrun, with a rank for each GPU. launch/torchrun.sh and launch/slurm.sbatch call it.
#
#     launch/node.sh begin|health|train [--dry-run] CONFIG [section.key=value ...]
#
# NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   of this launch; without them one node alone
# ONEFLOW_PROCESSES   ranks on a node; unset: one for each GPU
# ONEFLOW_ATTEMPT     folder of what belongs to this start, beside the logs of the ranks; launch/attempt.py makes it
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck disable=SC1091 # it is checked by itself
. launch/cluster.env

python=.venv/bin/python
[ -x "$python" ] || python=python3

# A GPU each; a scheduler may show fewer than there are.
count_gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true
    else
        { nvidia-smi --list-gpus 2>/dev/null || true; } | grep -c . || true
    fi
}

# Become one rank. Its log is appended to in every start of the launch; rank 0 is on the console as well.
become_rank() {
    if [ -n "${ONEFLOW_ATTEMPT:-}" ]; then
        log=$(printf '%s/rank-%05d.log' "$(dirname "$ONEFLOW_ATTEMPT")" "$RANK")
        if [ "$RANK" = 0 ]; then
            # tee outlives the signals that stop the rank, since the rank still has something to say then.
            exec > >(trap '' TERM INT HUP USR1 && exec tee -a "$log") 2>&1
        else
            exec >>"$log" 2>&1
        fi
    fi
    exec "$python" "$@"
}

what=$1
shift
case $what in
    rank) become_rank "$@" ;;
    begin) exec "$python" launch/attempt.py begin "$@" ;;
esac
show="exec"
if [ "${1:-}" = --dry-run ]; then
    shift
    show="echo"
fi
case $what in
    train) program=(-m oneflow_dist.train) ;;
    health) program=(-m launch.health) ;;
esac
processes=${ONEFLOW_PROCESSES:-$(count_gpus)}
if [ "$processes" = 0 ]; then
    echo "error: ${SLURMD_NODENAME:-$(hostname)}: no GPU here (of nvidia-smi, or in CUDA_VISIBLE_DEVICES); ask for" \
        "some, as --gpus-per-node 8, mend the driver, or set ONEFLOW_PROCESSES=N to train on N CPU ranks" >&2
    exit 2
fi
# Of each rank, when it hangs; to be read by torchfrtrace.
export TORCH_FR_DUMP_TEMP_FILE="${ONEFLOW_ATTEMPT:-/tmp}/flight-"
# No restarts by torchrun: over several nodes it hangs in many of them (docs/decisions/0017-launches.md).
# SIGUSR1 would kill torchrun; a save takes as long as it takes, and torchrun kills 30 s after a signal by default.
$show "$python" launch/agent.py \
    --nnodes "${NNODES:-1}" --nproc-per-node "$processes" --node-rank "${NODE_RANK:-${SLURM_NODEID:-0}}" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" --monitor-interval 1 \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGUSR1 --shutdown-timeout 600 \
    --no-python launch/node.sh rank "${program[@]}" "$@"
