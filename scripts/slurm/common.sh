# shellcheck shell=bash
# Sourced by the job scripts, in the checkout that the job was submitted from.
#
# PROCESSES          a node (default: its GPUs in the job, or 1)
# SAMPLE_DIR         folder of runs, on a file system that all nodes share (default: samples)
# FIDUCIAL_VENV      the virtual environment, seen by all nodes (default: .venv, made by scripts/demo.sh)
# FIDUCIAL_ACTIVATE  in its place a file that is sourced, or a line of bash, such as "module load conda && conda activate dit"
# FIDUCIAL_CONTAINER in its place what commands are run by, such as "apptainer exec --nv /shared/fiducial.sif"

sample_dir=${SAMPLE_DIR:-samples}
read -ra container <<< "${FIDUCIAL_CONTAINER:-}"

refuse() {
    echo "error: $1" >&2
    exit 2
}

# Makes python and torchrun those of the environment. Scripts of conda and modules use variables that nobody has set.
activate() {
    local line=${FIDUCIAL_ACTIVATE:-} file=${FIDUCIAL_VENV:-.venv}/bin/activate
    if [ -z "$line" ] && [ ${#container[@]} -gt 0 ]; then
        return
    elif [ -z "$line" ] && [ ! -f "$file" ]; then
        refuse "there is no $file; run scripts/demo.sh where there is internet, or name another by FIDUCIAL_VENV or FIDUCIAL_ACTIVATE"
    elif [ -z "$line" ]; then
        line="source $(printf %q "$file")"
    elif [ -f "$line" ]; then
        line="source $(printf %q "$line")"
    elif [[ $line != *[[:space:]]* ]]; then
        refuse "FIDUCIAL_ACTIVATE: there is no file $line"
    fi
    set +u
    eval "$line" || refuse "FIDUCIAL_ACTIVATE: this failed: $line"
    set -u
}
activate
for program in python torchrun; do
    if [ ${#container[@]} -eq 0 ] && ! command -v "$program" > /dev/null; then
        refuse "there is no $program in the environment; see FIDUCIAL_ACTIVATE in scripts/slurm/common.sh"
    fi
done
if [ ${#container[@]} -gt 0 ] && ! command -v "${container[0]}" > /dev/null; then
    refuse "FIDUCIAL_CONTAINER: there is no command ${container[0]} here"
fi

# srun does not take it over from sbatch by itself, and would bind all processes to one core.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi
processes=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
cores=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
if [ -n "${SLURM_JOB_ID:-}" ] && [ "$cores" -lt "$processes" ]; then
    echo "note: $processes processes of a node share $cores CPU(s); give sbatch --cpus-per-task, such as 8 for each process" >&2
fi
# Without it, torch 2.15's rendezvous fails when a node joins or comes back while others go on.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# Runs a Python program of ours here, alone.
on_this_node() {
    "${container[@]}" python "$@"
}

# Runs a Python program of ours on all nodes of the job, with PROCESSES processes each. torchrun forwards SIGUSR1 only if told to.
on_all_nodes() {
    local nodes
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # A requeued job keeps its number; a new port and id keep what is left of its last start away.
    local start="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
    local port=$((20000 + (SLURM_JOB_ID * 16 + ${SLURM_RESTART_COUNT:-0}) % 20000))
    srun --ntasks="${#nodes[@]}" --ntasks-per-node=1 --kill-on-bad-exit=0 "${container[@]}" \
        torchrun --nnodes="${#nodes[@]}" --nproc-per-node="$processes" --rdzv-id="$start" --rdzv-backend=c10d \
        --rdzv-endpoint="${nodes[0]}:$port" --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 "$@"
}

# Draws the run RUN with further options of sample_ddp.py. That torchrun fails says only that something ended, so the run is asked:
# 0 it is complete, 75 the same command continues it, 1 a person has to look, 2 there is no such run. Where the run is complete and
# torchrun failed all the same, the command was refused, or its evaluation failed: 1.
sample() {
    local run=$1 code=0 state=0
    shift
    on_all_nodes sample_ddp.py --sample-dir "$sample_dir" --run-name "$run" "$@" || code=$?
    on_this_node -m sampling status "$sample_dir/$run" || state=$?
    if [ "$state" = 0 ] && [ "$code" != 0 ]; then
        return 1
    fi
    return "$state"
}

# As sample; if the same command continues the run, and did not only refuse to begin, the job is requeued.
sample_or_requeue() {
    local run=$1 state=0 before
    before=$(sessions "$run")
    sample "$@" || state=$?
    if [ "$state" = 75 ] && [ "$(sessions "$run")" -gt "$before" ]; then
        scontrol requeue "$SLURM_JOB_ID"
        sleep 600 # until SLURM ends this script; its end must not count as the job's
    fi
    return "$state"
}

sessions() {
    { on_this_node -m sampling status "$sample_dir/$1" --json 2> /dev/null || true; } |
        on_this_node -c 'import json, sys; print(json.loads(sys.stdin.read() or "{}").get("sessions", 0))'
}

# Refuses options of calc that the scripts give it themselves, for each run.
refuse_outputs() {
    local option
    for option in "$@"; do
        case $option in
            --json | --json=* | --html | --html=* | --dry-run)
                refuse "$option: result and report of each run are written beside its npz; leave it out"
                ;;
        esac
    done
}

# Checks a reference and further options of calc together, before anything is drawn that they are for.
check_evaluation() {
    refuse_outputs "$@"
    on_this_node -m evaluation calc samples-to-come.npz --ref "$@" --dry-run || exit 2
}
