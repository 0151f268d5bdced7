#!/usr/bin/env bash
# From a clone to a better model on a CPU, offline once installed: environment, sample, score, train, test, report.
#     bash scripts/quickstart.sh              # -> runs/quickstart/report/report.html
# Run it again and it goes on where it was stopped. PYTHON and OMP_NUM_THREADS: see scripts/environment.sh.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
source scripts/environment.sh
source scripts/stages.sh

run_stages configs/tiny_sd2/quickstart runs/quickstart
