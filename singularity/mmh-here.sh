# shellcheck shell=bash
# Sourced by the other scripts: reads the settings, and turns into mmh, in a container or from a virtual environment.

fail() {
    echo "error: $*" >&2
    exit 2
}

# older ones take an empty array for an unset variable
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || fail "bash 4.4 or newer is needed, this is $BASH_VERSION"

# load_settings CONF
load_settings() {
    [[ -r "$1" ]] || fail "$1: cannot be read; give a copy of singularity/cluster.conf"
    # shellcheck source=singularity/cluster.conf
    source "$1"
    local name
    for name in BIDS_DIR OUT_DIR WORK_DIR; do
        [[ "${!name:-}" == /* ]] || fail "$1: $name='${!name:-}' is no absolute path"
    done
    [[ -n "${IMAGE:-}" || -n "${VENV:-}" ]] || fail "$1: set IMAGE or VENV"
    [[ -z "${IMAGE:-}" || -z "${VENV:-}" ]] || fail "$1: set IMAGE or VENV, not both"
    [[ -z "${VENV:-}" || -x "$VENV/bin/mmh" ]] || fail "$1: VENV=$VENV has no bin/mmh"
    [[ -z "${IMAGE:-}" || -e "$IMAGE" ]] || fail "$1: IMAGE=$IMAGE does not exist"
    [[ "$GPU" != 1 ]] || FLAGS+=(--device cuda)
}

# become_mmh ARGUMENTS: takes the place of the shell that calls it, so that signals reach mmh
become_mmh() {
    mkdir -p "$OUT_DIR" "$WORK_DIR"
    if [[ -n "$VENV" ]]; then
        exec "$VENV/bin/mmh" "$@"
    fi
    local name folder binds=(-B "$BIDS_DIR:$BIDS_DIR:ro" -B "$OUT_DIR" -B "$WORK_DIR")
    for folder in "${BINDS[@]}"; do
        binds+=(-B "$folder:$folder:ro")
    done
    # what --cleanenv would take away: which job this is, what it may use, which GPU is its own
    for name in SLURM_JOB_ID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_MEM_PER_NODE SLURM_CPUS_ON_NODE \
        SLURM_CPUS_PER_TASK CUDA_VISIBLE_DEVICES; do
        [[ -z "${!name:-}" ]] || export "APPTAINERENV_$name=${!name}"
    done
    [[ "$GPU" != 1 ]] || binds+=(--nv)
    exec "$APPTAINER" run --cleanenv --containall --no-home "${binds[@]}" "$IMAGE" "$@"
}
