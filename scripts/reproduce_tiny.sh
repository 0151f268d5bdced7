#!/usr/bin/env bash
# Every table, figure and ablation that the tiny models can give, one after the other: about ten hours on two cores, by its plans.
#     bash scripts/reproduce_tiny.sh [OUTPUT_DIR]     # default: runs/reproduce; the quickstarts, which come first, have folders of their own
# Run it again and it goes on where it was stopped; what is done is told by its tables in seconds.

caller="$PWD"
unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 2
source scripts/messages.sh
if [ $# -gt 1 ]; then fail "'$*' is not understood; usage: bash scripts/reproduce_tiny.sh [OUTPUT_DIR]"; fi
case "${1:-}" in "") output=runs/reproduce ;; /*) output=$1 ;; *) output=$caller/$1 ;; esac
make_folder "$output" OUTPUT_DIR

source scripts/environment.sh

# program SCRIPT [WORDS...]
program() {
    echo "== $*"
    "$PY" "$@" --output_dir "$output"
}

bash scripts/quickstart.sh                        # its policies are the rows of the image tables
bash scripts/quickstart.sh --backbone flux
for name in table1 table2 table3 cheap losses reward_sets aggregation groups_per_step degradation fig1b fig1b_flux fig4 fig5 rounds; do
    program scripts/reproduce.py "$name"
done
program studies/predict_nm.py
for runs in quickstart quickstart_flux; do
    echo "== fig6, $runs"
    "$PY" studies/fig6.py --candidates "base=runs/$runs/test/base" "policy=runs/$runs/test/policy" --gt_path preset/test/gt \
        --output_dir "$output/tiny/fig6_$runs"
done
