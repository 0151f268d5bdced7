# Sourced by quickstart.sh and full_run.sh: check what can be known before anything is installed, then install and run.

source "${BASH_SOURCE[0]%/*}/messages.sh"

export BEGUN="$(($(date +%s) - SECONDS))"
export SAME_COMMAND="${SAME_COMMAND:-the same command}" # a script sets it to what its user typed

# check_folders CONFIG_DIR OUTPUT_DIR
check_folders() {
    if ! [ -d "$1" ]; then fail "$(quoted "$1") is not a folder"; fi
    make_folder "$2" OUTPUT_DIR
    rmdir -- "$2" 2>/dev/null || true # only where it is empty: what is missing in CONFIG_DIR is said first
}

# run_stages CONFIG_DIR OUTPUT_DIR [ROUNDS [REFERENCE]]
run_stages() { "$PY" scripts/run_stages.py "$1" "$2" --rounds "${3:-1}" --reference "${4:-moved}"; }
