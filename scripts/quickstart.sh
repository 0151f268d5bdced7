#!/usr/bin/env bash
# From a clone to a better model on a CPU, offline once installed: environment, sample, score, train, test, report.
#     bash scripts/quickstart.sh                      # -> runs/quickstart/report/report.html
#     bash scripts/quickstart.sh --backbone flux      # -> runs/quickstart_flux/report/report.html
# Run it again and it goes on where it was stopped. PYTHON and OMP_NUM_THREADS: see scripts/environment.sh.

unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 2
source scripts/stages.sh
SAME_COMMAND=$(quoted bash "$0" "$@")
case "$*" in
    "" | "--backbone sd2") configs=configs/tiny_sd2/quickstart output=runs/quickstart ;;
    "--backbone flux") configs=configs/tiny_flux/quickstart output=runs/quickstart_flux ;;
    *) fail "'$*' is not understood; usage: bash scripts/quickstart.sh [--backbone sd2|flux]" ;;
esac
check_folders "$configs" "$output"

source scripts/environment.sh

run_stages "$configs" "$output"
