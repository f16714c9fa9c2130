# Sourced by the batch files: sets up the environment of a job, and starts, stops and requeues its run.
#   KAIZEN_SETUP   a line of bash for every shell of the job, such as `source .venv/bin/activate`
#   KAIZEN_DEVICE  cuda, or cpu with KAIZEN_PER_NODE processes per node; neither falls back to the other
#   KAIZEN_ACCELERATE  the file of accelerate_configs/ with precision and strategy
set -euo pipefail
signalled=''
trap 'signalled=yes' USR1 TERM # from the first line on, as the setup may take long
set +u # scripts that activate an environment may use variables that are not set
eval "${KAIZEN_SETUP:-}"
set -u
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 # nodes have no network: fail at once instead of waiting for it

refuse() {
    echo "error: $1" >&2
    exit 2
}

# The trainer refuses to run with a different number of processes, or on a different device, than the job requests.
export KAIZEN_DEVICE=${KAIZEN_DEVICE:-cuda}
case $KAIZEN_DEVICE in
    cuda) KAIZEN_PER_NODE=${SLURM_GPUS_ON_NODE:-0} ;;
    cpu) KAIZEN_PER_NODE=${KAIZEN_PER_NODE:-1} && export ACCELERATE_USE_CPU=1 ;;
    *) refuse "KAIZEN_DEVICE: is '$KAIZEN_DEVICE'; allowed: cuda, cpu" ;;
esac
((KAIZEN_PER_NODE > 0)) || refuse "SLURM_GPUS_ON_NODE: is 0; allowed: --gpus-per-node N, or KAIZEN_DEVICE=cpu"
export KAIZEN_PROCESSES=$((KAIZEN_PER_NODE * SLURM_JOB_NUM_NODES))

# The processes meet at the first node of the job, at the address that Slurm uses and a port chosen by the job's number.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
KAIZEN_MAIN_ADDRESS=$(scontrol show node -o "${nodes[0]}" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
export KAIZEN_MAIN_ADDRESS KAIZEN_MAIN_PORT=$((20000 + SLURM_JOB_ID % 10000))

# One index of an array is named by both numbers: the array's number alone would requeue the whole array.
job=$SLURM_JOB_ID
[[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

status_version() { stat -c '%i %Y %Z' "$run/status.json" 2>/dev/null || true; }
status_value() { sed -n "s/.*\"$1\": *\"\{0,1\}\([A-Za-z0-9]*\).*/\1/p" "$run/status.json" 2>/dev/null || true; }

# Slurm holds a job back until the previous one of the same name has ended, but its processes may end later. Jobs of the
# same array do not matter.
another_ends() {
    local ending
    ending=$(squeue --noheader --user="$(id -u)" --name="$SLURM_JOB_NAME" --states=COMPLETING --format=%F)
    [[ -n $(grep -vx "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}" <<<"$ending") ]]
}

# train_or_requeue RUN_DIRECTORY ARGUMENT...: `python ARGUMENT...` under Accelerate on all nodes of the job. Ends the
# script: 0 done, 75 stopped, any other code failed. A run that Slurm stopped is requeued; one that failed is not.
train_or_requeue() {
    run=$1
    shift
    for _ in {1..60}; do
        another_ends || break
        sleep 2
    done
    mkdir -p "$run"
    rm -f "$run/stop" # it was meant for an earlier job
    [[ -z $signalled ]] || requeue
    local before state=none code=0
    before=$(status_version)
    progress_before=$(progress)
    export KAIZEN_PREEMPTED=$run/.preempted # created by a node that Slurm has signalled
    rm -f "$KAIZEN_PREEMPTED"
    # The other nodes notice a lost node and report it: srun kills them only if they do not end within two minutes.
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} --kill-on-bad-exit=0 --wait=120 \
        bash launch/node.sh "$@" &
    local step=$!
    while kill -0 "$step" 2>/dev/null; do
        # Repeatedly, as a file that is older than the processes does not count.
        if [[ -n $signalled ]]; then touch "$run/stop"; fi
        sleep 1
    done
    wait "$step" || code=$?
    # A status from an earlier start does not count.
    if [[ $(status_version) != "$before" ]]; then state=$(status_value state); fi
    case $state in
        done) exit 0 ;;
        failed) exit "$(status_value exit_code)" ;;
    esac
    # On preemption Slurm may signal only the processes. A run that a user stopped with the file `stop` stays stopped.
    [[ $state != stopped || $(status_value reason) != SIGTERM ]] || signalled=yes
    [[ $state != none || ! -e $KAIZEN_PREEMPTED ]] || signalled=yes # preempted during the start, with nothing to save
    if [[ -n $signalled ]]; then requeue; fi
    [[ $state != stopped ]] || exit 75
    exit "$((code ? code : 3))"
}

# The position of a run: if it is the same before and after a job, the job made no progress.
progress() { echo "$(status_value task) $(status_value step) $(stat -c %Y "$run/results.json" 2>/dev/null || true)"; }

# Requeue the job, unless it is being cancelled, or Slurm itself requeues it, or it repeatedly makes no progress.
requeue() {
    rm -f "$run/stop" "$run/.preempted"
    [[ $(squeue --noheader --jobs "$job" --format %T) == RUNNING ]] || exit 75
    if ((${SLURM_RESTART_COUNT:-0} >= 10)) && [[ ${progress_before-} == "$(progress)" ]]; then
        echo "error: job $job: restart ${SLURM_RESTART_COUNT} without progress; allowed: a longer --time" >&2
        exit 3
    fi
    local step
    step=$(status_value step)
    echo "job $job: stopped at step ${step:-0}, back in the queue"
    scontrol requeue "$job"
    exit 75
}
