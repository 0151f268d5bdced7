# Sourced after environment.sh: run_stages CONFIG_DIR OUTPUT_DIR - the whole method, one stage after the other, on the command line's Python.
# Numbers and input paths are in CONFIG_DIR/*.yaml; where each stage writes is decided here, because the next stage reads it there.
# Every stage resumes: stopped anywhere, the same command goes on where it was.

# Noise that a reader takes for failure; a model or metric that is not on disk must fail at once, not search the network.
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}" TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error GLOG_minloglevel=2 HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"

NUM_STAGES=8
WORKERS=$((OMP_NUM_THREADS < 4 ? OMP_NUM_THREADS : 4)) # of scoring, which single threads do best; about 0.8 GB each
STAGE=0
TIMES=""

# stage TITLE COMMAND...
stage() {
    local title="$1" start=$SECONDS status=0
    shift
    STAGE=$((STAGE + 1))
    printf '\n[%d/%d] %s\n' "$STAGE" "$NUM_STAGES" "$title"
    "$@" || status=$?
    if [ "$status" -ne 0 ]; then
        echo "stopped in stage $STAGE/$NUM_STAGES ($title), exit code $status; the same command goes on from here" >&2
        exit "$status"
    fi
    TIMES+=$(printf '  %-54s %s' "[$STAGE/$NUM_STAGES] $title" "$(clock $((SECONDS - start)))")$'\n'
}

clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# generate CONFIG OUTPUT [FLAGS...] and label CONFIG CANDIDATES
generate() { "$PY" -m dp2osr.launch gen_candidates.py --config "$1" --output_dir "$2" "${@:3}"; }
label() { "$PY" label_rewards.py --config "$1" --candidates_dir "$2" --num_workers "$WORKERS"; }

# Its table is kept, so that it comes last, after the times.
evaluate() {
    "$PY" scripts/evaluate.py --config "$configs/evaluate.yaml" --candidates "base=$out/test/base" "policy=$out/test/policy" \
        --training_log "$out/policy/train_log.jsonl" --output_dir "$out/report" > "$out/table.txt"
}

run_stages() {
    local configs="$1" out="$2" started=$SECONDS name
    for name in sample label train test label_test evaluate; do
        if ! [ -f "$configs/$name.yaml" ]; then fail "$configs/$name.yaml is missing; copy configs/tiny_sd2/quickstart and edit the copy"; fi
    done
    mkdir -p "$out" || fail "$out: cannot make this folder"

    stage "sample the training photographs with the base" generate "$configs/sample.yaml" "$out/candidates"
    stage "score the candidates" label "$configs/label.yaml" "$out/candidates"
    stage "train the policy on its best and worst" "$PY" -m dp2osr.launch train_sd2_dpo.py --config "$configs/train.yaml" \
        --candidates_dir "$out/candidates" --scores "$out/candidates/scores.parquet" --output_dir "$out/policy"
    stage "sample held-out photographs with the base" generate "$configs/test.yaml" "$out/test/base"
    stage "score them" label "$configs/label_test.yaml" "$out/test/base"
    stage "sample held-out photographs with the policy" generate "$configs/test.yaml" "$out/test/policy" \
        --controlnet_model_name_or_path "$out/policy"
    stage "score them" label "$configs/label_test.yaml" "$out/test/policy"
    stage "compare, and write the report" evaluate

    printf '\nminutes:seconds on %s threads\n%s  %-54s %s\n' "$OMP_NUM_THREADS" "$TIMES" "all stages" "$(clock $((SECONDS - started)))"
    printf '  %-54s %s\n' "with the environment" "$(clock "$SECONDS")"
    printf '\n'
    cat "$out/table.txt"
}
