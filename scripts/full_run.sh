#!/usr/bin/env bash
# The quickstart's stages with any folder of settings and any number of rounds: the documented full tiny run, or your own copy of it.
#     bash scripts/full_run.sh [CONFIG_DIR [OUTPUT_DIR [ROUNDS [REFERENCE]]]]     # default: configs/tiny_sd2/full runs/full 3 moved
#     bash scripts/full_run.sh configs/tiny_flux/full runs/full_flux 2   # the same on tiny-flux, two rounds
# Run it again and it goes on where it was stopped. PYTHON and OMP_NUM_THREADS: see scripts/environment.sh.

caller="$PWD"
unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 2
source scripts/stages.sh
SAME_COMMAND=$(quoted bash "$0" "$@")

# A path given on the command line is relative to the caller's folder.
absolute() { case "$1" in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$caller/$1" ;; esac; }
configs=configs/tiny_sd2/full
output=runs/full
if [ $# -ge 1 ]; then configs=$(absolute "$1"); fi
if [ $# -ge 2 ]; then output=$(absolute "$2"); fi
rounds=${3:-3}
reference=${4:-moved}
usage="usage: bash scripts/full_run.sh [CONFIG_DIR [OUTPUT_DIR [ROUNDS [REFERENCE]]]]"
if [ $# -gt 4 ]; then fail "$# arguments, four at most (a path with spaces must be quoted); $usage"; fi
if [ $# -ge 1 ] && [ -z "$1" ]; then fail "CONFIG_DIR is empty; $usage"; fi
if [ $# -ge 2 ] && [ -z "$2" ]; then fail "OUTPUT_DIR is empty; $usage"; fi
if ! [ -d "$configs" ]; then fail "$(quoted "$configs") is not a folder; $usage"; fi
if ! [[ "$rounds" =~ ^[1-9][0-9]?$ ]]; then fail "ROUNDS is '$rounds', must be 1 to 99; $usage"; fi
if [ "$reference" != moved ] && [ "$reference" != fixed ]; then
    fail "REFERENCE is '$reference', must be moved (each round's is the policy that it starts from) or fixed (the base); $usage"
fi
check_folders "$configs" "$output"

source scripts/environment.sh

run_stages "$configs" "$output" "$rounds" "$reference"
