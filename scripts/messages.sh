# Sourced by the other scripts: errors of one line, paths and commands that can be pasted, and folders that can be written.

# A user's mistake or a missing thing: one line, exit code 2.
fail() {
    echo "error: $*" >&2
    exit 2
}

# quoted WORD...: the words as a shell reads them back, whatever is in them
quoted() {
    local words
    printf -v words ' %q' "$@"
    printf '%s\n' "${words# }"
}

# make_folder FOLDER WHAT: make it if it is missing, and try to write there; WHAT names the setting in the message.
make_folder() {
    local error probe="$1/.written-$$"
    if [ -e "$1" ] && ! [ -d "$1" ]; then fail "$2 $(quoted "$1") is a file; name a folder"; fi
    error=$(mkdir -p -- "$1" 2>&1) || fail "$2 $(quoted "$1") cannot be made (${error##*: }); name another folder"
    error=$({ : >"$probe"; } 2>&1) || fail "$2 $(quoted "$1") cannot be written (${error##*: }); name another folder"
    rm -f -- "$probe"
}
