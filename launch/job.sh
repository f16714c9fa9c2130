# Sourced by the batch files: what a job's environment is, and how a run in it is started, stopped and put back in the queue.
#   KAIZEN_SETUP   a line of bash for every shell of the job, such as `source .venv/bin/activate`
#   KAIZEN_DEVICE  cuda, or cpu with KAIZEN_PER_NODE processes a node; there is no falling back from one to the other
#   KAIZEN_ACCELERATE  the file of accelerate_configs/ that says precision and strategy
set -euo pipefail
signalled=''
trap 'signalled=yes' USR1 TERM # from the first line on, as the setup may take its time
set +u # what activates an environment may use variables that are not set
eval "${KAIZEN_SETUP:-}"
set -u
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 # nodes have no network: a wait for it is an error at once

refuse() {
    echo "error: $1" >&2
    exit 2
}

# The processes that the job must start; the trainer refuses to run as any other number, or on another device.
export KAIZEN_DEVICE=${KAIZEN_DEVICE:-cuda}
case $KAIZEN_DEVICE in
    cuda) KAIZEN_PER_NODE=${SLURM_GPUS_ON_NODE:-0} ;;
    cpu) KAIZEN_PER_NODE=${KAIZEN_PER_NODE:-1} && export ACCELERATE_USE_CPU=1 ;;
    *) refuse "KAIZEN_DEVICE: is '$KAIZEN_DEVICE'; allowed: cuda, cpu" ;;
esac
((KAIZEN_PER_NODE > 0)) || refuse "SLURM_GPUS_ON_NODE: is 0; allowed: --gpus-per-node N, or KAIZEN_DEVICE=cpu"
export KAIZEN_PROCESSES=$((KAIZEN_PER_NODE * SLURM_JOB_NUM_NODES))

# Where the processes meet: the first of the job's nodes, as Slurm reaches it, at a port of this job's own.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
KAIZEN_MAIN_ADDRESS=$(scontrol show node -o "${nodes[0]}" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
export KAIZEN_MAIN_ADDRESS KAIZEN_MAIN_PORT=$((20000 + SLURM_JOB_ID % 10000))

# An index of an array is named by both numbers: the array's alone would put all of it back in the queue.
job=$SLURM_JOB_ID
[[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

status_version() { stat -c '%i %Y %Z' "$run/status.json" 2>/dev/null || true; }
status_value() { sed -n "s/.*\"$1\": *\"\{0,1\}\([A-Za-z0-9]*\).*/\1/p" "$run/status.json" 2>/dev/null || true; }

# Slurm holds jobs of one name back until the one before has ended, but not until its processes have; those of the same
# array do not matter.
another_ends() {
    local ending
    ending=$(squeue --noheader --user="$(id -u)" --name="$SLURM_JOB_NAME" --states=COMPLETING --format=%F)
    [[ -n $(grep -vx "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}" <<<"$ending") ]]
}

# train_or_requeue RUN_DIRECTORY ARGUMENT...: `python ARGUMENT...` under Accelerate on all nodes of the job. Ends the
# script: 0 done, 75 stopped, any other failed. A run that Slurm stopped goes back in the queue; one that failed does not.
train_or_requeue() {
    run=$1
    shift
    for _ in {1..60}; do
        another_ends || break
        sleep 2
    done
    mkdir -p "$run"
    rm -f "$run/stop" # was meant for an earlier job
    [[ -z $signalled ]] || requeue
    local before state=none code=0
    before=$(status_version)
    progress_before=$(progress)
    export KAIZEN_PREEMPTED=$run/.preempted # what a node makes that Slurm has signalled
    rm -f "$KAIZEN_PREEMPTED"
    # A node that is lost is noticed by the others, which have to tell: srun kills them only if they do not.
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} --kill-on-bad-exit=0 --wait=120 \
        bash launch/node.sh "$@" &
    local step=$!
    while kill -0 "$step" 2>/dev/null; do
        # More than once, as a file from before the processes began does not count.
        if [[ -n $signalled ]]; then touch "$run/stop"; fi
        sleep 1
    done
    wait "$step" || code=$?
    # A status from before this start says nothing about it.
    if [[ $(status_version) != "$before" ]]; then state=$(status_value state); fi
    case $state in
        done) exit 0 ;;
        failed) exit "$(status_value exit_code)" ;;
    esac
    # Slurm may have told the processes alone of a preemption; a user's own file `stop` is left to mean what it says.
    [[ $state != stopped || $(status_value reason) != SIGTERM ]] || signalled=yes
    [[ $state != none || ! -e $KAIZEN_PREEMPTED ]] || signalled=yes # while it started, with nothing to save
    if [[ -n $signalled ]]; then requeue; fi
    [[ $state != stopped ]] || exit 75
    exit "$((code ? code : 3))"
}

# Where a run stands: what is the same before and after a job shows that it got nowhere.
progress() { echo "$(status_value task) $(status_value step) $(stat -c %Y "$run/results.json" 2>/dev/null || true)"; }

# Back in the queue, unless the job is being cancelled, or put back by Slurm itself, or gets nowhere again and again.
requeue() {
    rm -f "$run/stop" "$run/.preempted"
    [[ $(squeue --noheader --jobs "$job" --format %T) == RUNNING ]] || exit 75
    if ((${SLURM_RESTART_COUNT:-0} >= 10)) && [[ ${progress_before-} == "$(progress)" ]]; then
        echo "error: job $job: start ${SLURM_RESTART_COUNT} and no step further; allowed: a longer --time" >&2
        exit 3
    fi
    local step
    step=$(status_value step)
    echo "job $job: stopped at step ${step:-0}, back in the queue"
    scontrol requeue "$job"
    exit 75
}
