#!/usr/bin/env bash
# A program on this host for launch/hosts.py, which may be on another: what comes on stdin are names of signals, a line
# each, that the program gets. KILL is for all that it has started. The end of stdin, when the launcher or the line to it
# has gone, is SIGTERM: the run saves and ends.
#
#     launch/host.sh launch/node.sh train CONFIG ...
set -uo pipefail
exec 3<&0
setsid "$@" </dev/null &
program=$!
{
    while read -r name; do
        if [ "$name" = KILL ]; then kill -KILL -- "-$program"; else kill "-$name" "$program"; fi
    done
    kill -TERM "$program"
} <&3 2>/dev/null &
listener=$!
wait "$program"
code=$?
kill "$listener"
exit "$code"
