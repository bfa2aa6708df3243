#!/bin/sh
# What a container does with its arguments. A config and overrides are for the trainer; a program is started as it is.
set -eu
case "${1-}" in
quickstart)
    exec make --no-print-directory -C /oneflow_dist quickstart
    ;;
health)
    # A run holds its metrics.jsonl open and writes a line a step: one without a line in 30 minutes hangs.
    find /proc/[0-9]*/fd -lname '*/metrics.jsonl' -printf '%l\n' 2>/dev/null | while read -r path; do
        test -n "$(find "$path" -mmin -30)" || { echo "$path: no step in 30 minutes"; exit 1; }
    done
    ;;
oneflow | python | torchrun | make | launch/*)
    exec "$@"
    ;;
*)
    exec python -m oneflow_dist.train "$@"
    ;;
esac
