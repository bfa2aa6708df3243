# shellcheck shell=bash
# How a launch script runs a program that takes long, and passes signals on to it. Sourced by launch/torchrun.sh and
# launch/slurm.sbatch.
#
# told   what the script has been told to stop by; empty: nothing
# code   exit code of the last program
told='' step='' code=0

# To be called by a trap: remember that the script has been told, and tell the program.
tell() {
    told=$1
    [ -z "$step" ] || kill "-$1" "$step" 2>/dev/null || true
}

# Start a program and wait for it, unless the script has been told to stop before.
run() {
    [ -z "$told" ] || return 0
    "$@" </dev/null &
    step=$!
    code=''
    while [ -z "$code" ] || kill -0 "$step" 2>/dev/null; do # a signal interrupts `wait`
        wait "$step" && code=0 || code=$?
    done
    step=''
}
