#!/usr/bin/env bash
# The entry of the container: without words it lists the programs, `PROGRAM.py FLAGS` runs one, and any other command runs as it is.

set -euo pipefail
unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
    "" | -h | --help)
        echo "usage: docker run --rm --gpus all dp2osr PROGRAM.py [FLAGS]; PROGRAM.py --help lists the flags"
        for program in *.py scripts/*.py; do
            printf '  %-32s %s\n' "$program" "$(sed -n '1{s/^"""//;s/"""$//;p}' "$program")"
        done
        ;;
    *.py) exec python "$@" ;;
    *) exec "$@" ;;
esac
