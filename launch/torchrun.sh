#!/usr/bin/env bash
# Train on this machine, with all its GPUs; run it again to go on.
#
#     launch/torchrun.sh [--dry-run] CONFIG [section.key=value ...]
#
# Exit code: 0 finished; 75 not yet, the same command goes on; 2 something is to be mended first; 1 broken off for good.
# ONEFLOW_HEALTH=off   no health check before
# ONEFLOW_PORT         of rank 0; unset: a free one
# launch/node.sh and launch/cluster.env have the other variables.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3

if [ "${1:-}" = --dry-run ]; then
    shift
    [ "${ONEFLOW_HEALTH:-on}" = off ] || launch/node.sh health --dry-run "$@"
    launch/node.sh train --dry-run "$@"
    exit
fi
export NNODES=1 ONEFLOW_COMMAND="$0 $*" ONEFLOW_LAUNCH="${ONEFLOW_LAUNCH:-$(date +%Y%m%d-%H%M%S)}"
# shellcheck disable=SC1091 # it is checked by itself
. launch/step.sh
trap 'tell TERM' TERM INT # bash makes what it starts in the background deaf to SIGINT
trap 'tell HUP' HUP
trap 'tell USR1' USR1
while true; do
    begun=$(launch/node.sh begin "$@")
    read -r MASTER_PORT ONEFLOW_ATTEMPT <<<"$begun"
    export MASTER_PORT ONEFLOW_ATTEMPT
    code=0
    [ "${ONEFLOW_HEALTH:-on}" = off ] || run launch/node.sh health "$@"
    [ "$code" != 0 ] || run launch/node.sh train "$@"
    "$python" launch/attempt.py end "$ONEFLOW_ATTEMPT" --code "$code" --told "${told:+a signal}" && code=0 || code=$?
    [ "$code" = 76 ] || exit "$code" # 76: a rank has died, and a restart may help
done
