#!/usr/bin/env bash
# One node's part of a run: Accelerate's launcher, which starts one process per GPU. srun starts this on every node.
set -euo pipefail
set +u # scripts that activate an environment may use variables that are not set
eval "${KAIZEN_SETUP:-}"
set -u

# On preemption Slurm signals every process of the job. Training processes save and end. Launchers would kill them after
# 30 seconds even during a save, so launchers ignore the signal. Processes with nothing to save yet write no status, so
# this script leaves a file.
trap 'touch "$KAIZEN_PREEMPTED"' TERM
export PET_SIGNALS_TO_HANDLE=SIGINT

port=$KAIZEN_MAIN_PORT
((SLURM_JOB_NUM_NODES > 1)) || port=0 # any free one, as other jobs may share the node
(
    trap '' TERM
    python -m accelerate.commands.launch -q --config_file "${KAIZEN_ACCELERATE:-accelerate_configs/multi_node.yaml}" \
        --num_machines "$SLURM_JOB_NUM_NODES" --num_processes "$KAIZEN_PROCESSES" --machine_rank "$SLURM_PROCID" \
        --main_process_ip "$KAIZEN_MAIN_ADDRESS" --main_process_port "$port" \
        ${ACCELERATE_MIXED_PRECISION:+--mixed_precision "$ACCELERATE_MIXED_PRECISION"} "$@" # the file would win otherwise
) &
launcher=$!
while kill -0 "$launcher" 2>/dev/null; do sleep 1; done
wait "$launcher"
