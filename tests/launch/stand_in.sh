#!/bin/bash
# Stands for a job's python where the script around it is tested: `-m megatron_gopd VERB CONFIG ...` calls the function
# VERB of play.sh, beside CONFIG; other modules run as they are.
if [[ $2 != megatron_gopd ]]; then exec "$REAL_PYTHON" "$@"; fi
# the job starts a run with USR1 ignored, which bash, unlike Python, could not undo
[[ -n ${LISTENS:-} ]] || LISTENS=1 exec env --default-signal=USR1 "$0" "$@"
attempt=${SLURM_RESTART_COUNT:-0}
run=$(dirname "$4")/runs/tiny
say() { echo "{\"exit_code\": $1, \"kind\": \"$2\", \"message\": \"$3\"}" >"$MEGATRON_GOPD_OUTCOME"; return "$1"; }
checkpoint() { mkdir -p "$run/checkpoints/step-$(printf %08d "$1")"; }
doctor() { :; }
source "$(dirname "$4")/play.sh"
shift 2
"$@"
