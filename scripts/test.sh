#!/usr/bin/env bash
# Environment, then the tests: bash scripts/test.sh [pytest's arguments]. On a CPU, offline once installed.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
source scripts/environment.sh

export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
exec "$PY" -m pytest "$@"
