#!/usr/bin/env bash
# The quickstart's stages with any folder of settings and any number of rounds: the documented full tiny run, or your own copy of it.
#     bash scripts/full_run.sh [CONFIG_DIR [OUTPUT_DIR [ROUNDS [REFERENCE]]]]     # default: configs/tiny_sd2/full runs/full 5 moved
#     bash scripts/full_run.sh configs/tiny_flux/full runs/full_flux 2   # the same on tiny-flux, two rounds
# Run it again and it goes on where it was stopped. PYTHON and OMP_NUM_THREADS: see scripts/environment.sh.

caller="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

# A path given on the command line is relative to the caller's folder.
absolute() { case "$1" in /*) echo "$1" ;; *) echo "$caller/$1" ;; esac; }
configs=configs/tiny_sd2/full
output=runs/full
if [ $# -ge 1 ]; then configs=$(absolute "$1"); fi
if [ $# -ge 2 ]; then output=$(absolute "$2"); fi
rounds=${3:-5}
reference=${4:-moved}
usage="usage: bash scripts/full_run.sh [CONFIG_DIR [OUTPUT_DIR [ROUNDS [REFERENCE]]]]"
if [ $# -gt 4 ] || ! [ -d "$configs" ]; then
    echo "error: $configs is not a folder; $usage" >&2
    exit 2
fi
if ! [[ "$rounds" =~ ^[1-9][0-9]?$ ]]; then
    echo "error: ROUNDS is '$rounds', must be 1 to 99; $usage" >&2
    exit 2
fi
if [ "$reference" != moved ] && [ "$reference" != fixed ]; then
    echo "error: REFERENCE is '$reference', must be moved (each round's is the policy that it starts from) or fixed (the base); $usage" >&2
    exit 2
fi

source scripts/environment.sh
source scripts/stages.sh

run_stages "$configs" "$output" "$rounds" "$reference"
