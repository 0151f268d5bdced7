#!/usr/bin/env bash
# Environment, then the tests: bash scripts/test.sh [pytest's arguments]. On a CPU, offline once installed.
# OMP_NUM_THREADS (default: the cores) is the number of tests that run side by side, eight at most, one thread each.

unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 2
source scripts/environment.sh

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
workers=$((OMP_NUM_THREADS < 8 ? OMP_NUM_THREADS : 8))
export OMP_NUM_THREADS=1
exec "$PY" -m pytest --numprocesses "$workers" --dist worksteal "$@"
