# Sourced: makes or reuses .venv, installs what is missing, and leaves $PY (its Python), $ROOT and the thread settings behind.
#
#   PYTHON=/path/to/python3.11    the Python a new .venv is made with; otherwise the first of 3.11, 3.12, 3.13, 3.10 that really runs
#                                 (3.14 where there is no other: every pinned package installs on it, the tests have not been run)
#   OMP_NUM_THREADS=4             threads a process; otherwise one a core
#
# An interrupted install goes on when the same command is run again. A user's mistake or a missing thing: one line, exit code 2.

set -euo pipefail
unset CDPATH  # with it, `cd` may go elsewhere

case "${BASH_SOURCE[0]}" in */*) ROOT="${BASH_SOURCE[0]%/*}/.." ;; *) ROOT=".." ;; esac
ROOT="$(cd "$ROOT" && pwd -P)"
cd "$ROOT"
source scripts/messages.sh

VENV="$ROOT/.venv"
PY="$VENV/bin/python"
DISK_GB=12              # what a new .venv needs at its peak: 6.5 GB installed, 3 GB of downloads on their way, some air
WITHOUT_DEPENDENCIES='^(pyiqa|facexlib)[^a-z]'  # see requirements.txt

# Does this interpreter run (a pyenv shim may only print a message), is it 3.10-3.14, and can it make a virtual environment?
python_works() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        python_works "$PYTHON" || fail "PYTHON=$(quoted "$PYTHON") is not a Python 3.10-3.13 with venv and ensurepip; set PYTHON to one that is"
        echo "$PYTHON"
        return
    fi
    local name path
    for name in python3.11 python3.12 python3.13 python3.10 python3 python python3.14; do
        while IFS= read -r path; do
            if [ -n "$path" ] && python_works "$path"; then
                echo "$path"
                return
            fi
        done <<<"$(type -aP "$name" || true)"
    done
    fail "no Python 3.10-3.13 with venv and ensurepip found (Debian: apt install python3 python3-venv); install one, or set PYTHON to its path"
}

check_disk() {
    local free
    free=$(df -Pk "$ROOT" | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "$free" -ge "$DISK_GB" ] || fail "$(quoted "$ROOT"): $free GB free, a new .venv needs about $DISK_GB GB (PyTorch with CUDA); free some and run the same command again"
}

# The stamp names the Python, the requirements and the constraints that .venv was last filled from.
STAMP="$VENV/installed.stamp"
wanted_stamp() { "$PY" -c 'import sys, zlib; print(sys.version.split()[0], *(zlib.crc32(open(p, "rb").read()) for p in sys.argv[1:]))' requirements.txt constraints.txt pyproject.toml; }
installed() { [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(wanted_stamp)" ]; }

move_away() { echo "move it away and run the same command again: $(quoted mv "$VENV" "$VENV.old")"; }

make_venv() {
    local python
    if [ -L "$PY" ] && ! [ -e "$PY" ]; then fail "$(quoted "$VENV"): its Python is gone; $(move_away)"; fi
    if [ -x "$PY" ]; then
        note_other_python
        if installed; then return; fi
        check_writable
        python_works "$PY" || fail "$(quoted "$VENV") is not a Python 3.10-3.13 environment; $(move_away)"
        if "$PY" -m pip --version >/dev/null 2>&1; then return; fi
        echo "$VENV is not complete: finishing it"
        "$PY" -m ensurepip --upgrade >/dev/null 2>&1 || fail "$(quoted "$VENV"): pip cannot be put into it; $(move_away)"
        return
    fi
    python=$(find_python) || exit 2
    check_disk
    check_writable
    echo "making .venv with $("$python" -V) ($python)"
    case "$("$python" -V)" in *\ 3.14.*) echo "note: nobody has run the tests on Python 3.14 yet; every pinned package installs on it" ;; esac
    "$python" -m venv "$VENV" || fail "$(quoted "$python") cannot make $(quoted "$VENV"); set PYTHON to another Python 3.10-3.13"
}

# A clone may be read-only for all but its owner: then .venv is used as it is, or not at all.
check_writable() {
    local error
    error=$({ mkdir -p "$VENV" && : >"$VENV/install.log"; } 2>&1) || fail "$(quoted "$VENV") cannot be made or brought up to date" \
        "(${error##*: }); clone the repository into a folder of your own, or let the owner of this one run the same command once"
}

# PYTHON is for a new .venv; one that is there keeps its own.
note_other_python() {
    if [ -n "${PYTHON:-}" ] && [ "$("$PYTHON" -V 2>&1)" != "$("$PY" -V)" ]; then
        echo "note: .venv has $("$PY" -V) and is used; PYTHON=$(quoted "$PYTHON") is not. For another Python $(move_away)" >&2
    fi
}

# A kill in the middle of one package leaves a .dist-info without RECORD, which pip takes for an installed package.
forget_half_installed() {
    local info
    for info in "$VENV"/lib/python*/site-packages/*.dist-info; do
        if [ -d "$info" ] && ! [ -f "$info/RECORD" ]; then rm -rf "$info"; fi
    done
}

# pip in the background, and one line that says what it is doing.
pip_install() {
    local log="$VENV/install.log" pid status=0 doing start=$SECONDS said=-30
    TMPDIR="$VENV/tmp" "$PY" -m pip --disable-pip-version-check install --no-input --no-compile --progress-bar off -c constraints.txt "$@" >>"$log" 2>&1 &
    pid=$!
    trap 'kill $pid 2>/dev/null; echo "stopped; the same command goes on with the installation" >&2; exit 130' INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        doing=$(grep -oE '^ *(Collecting [A-Za-z0-9_.-]+|Downloading [A-Za-z0-9_.]+.*\(.*\)|Processing .*/[A-Za-z0-9_]+|Installing collected packages)' "$log" |
            tail -n 1 | sed -E 's#^ *##; s#Processing .*/#Unpacking #; s#-[^ ]*\.(whl|tar\.gz)##' || true)
        if [ -t 1 ]; then
            printf '\r  %3d s  %-60.60s' $((SECONDS - start)) "$doing"
        elif [ $((SECONDS - start - said)) -ge 30 ]; then
            said=$((SECONDS - start))
            printf '  %3d s  %s\n' "$said" "$doing"
        fi
        sleep 1
    done
    wait "$pid" || status=$?
    trap - INT TERM
    if [ -t 1 ]; then printf '\r%-72s\r' ''; fi
    [ "$status" -eq 0 ] || explain_pip_failure "$log"
}

explain_pip_failure() {
    if grep -qE 'No space left on device|Errno 28|Disk quota exceeded' "$1"; then
        fail "the disk of $(quoted "$VENV") is full; free about $DISK_GB GB and run the same command again"
    elif grep -qE 'NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|ConnectionResetError|ProtocolError|connection broken by|from versions: none' "$1"; then
        fail "pip cannot reach its package index, or finds no package there (no network? proxy?); run the same command again when it can ($(quoted "$1"))"
    fi
    fail "pip: $(grep -E '^ *(ERROR|error):?' "$1" | head -n 1 | sed -E 's/^ *(ERROR|error):? *//' | cut -c 1-200) ($(quoted "$1"))"
}

install_requirements() {
    local start=$SECONDS
    echo "installing requirements.txt into .venv: about 3 GB to download and 6.5 GB on disk the first time (log: .venv/install.log)"
    forget_half_installed
    rm -rf "$VENV/tmp"
    mkdir -p "$VENV/tmp"
    : >"$VENV/install.log"
    local with=() without=() line
    while IFS= read -r line; do
        line="${line%%#*}"
        line="${line//[[:space:]]/}"
        if [ -z "$line" ]; then continue; fi
        if [[ "$line" =~ $WITHOUT_DEPENDENCIES ]]; then without+=("$line"); else with+=("$line"); fi
    done <requirements.txt
    if [ ${#with[@]} -gt 0 ]; then pip_install "${with[@]}"; fi
    if [ ${#without[@]} -gt 0 ]; then pip_install --no-deps "${without[@]}"; fi
    pip_install --no-deps --no-build-isolation --editable .
    rm -rf "$VENV/tmp"
    wanted_stamp >"$STAMP.part"
    mv "$STAMP.part" "$STAMP"
    echo "installed in $((SECONDS - start)) s"
}

make_venv
if ! installed; then install_requirements; fi

if [ -z "${OMP_NUM_THREADS:-}" ]; then
    OMP_NUM_THREADS=$("$PY" -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
fi
export OMP_NUM_THREADS
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
unset PYTHONDONTWRITEBYTECODE  # pip compiles nothing here: the first start does, and without its bytecode every start would, 15 s each
