# Sourced after environment.sh: run_stages CONFIG_DIR OUTPUT_DIR [ROUNDS [REFERENCE]] - the whole method, one stage after the other.
# Numbers and input paths are in CONFIG_DIR/*.yaml; where each stage writes is decided here, because the next stage reads it there.
# One round is the paper's method. Each further round samples with the policy of the one before, with new seeds, and starts from it;
# its reference is that policy (REFERENCE moved, the default) or stays the base (fixed).
# Every stage resumes: stopped anywhere, the same command goes on where it was.

# Noise that a reader takes for failure; a model or metric that is not on disk must fail at once, not search the network.
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}" TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error GLOG_minloglevel=2 HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"

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
label() { "$PY" -m dp2osr.launch label_rewards.py --config "$1" --candidates_dir "$2"; }

# Its table is kept, so that it comes last, after the times.
evaluate() {
    "$PY" scripts/evaluate.py --config "$configs/evaluate.yaml" --candidates "${candidates[@]}" \
        --training_log "${logs[@]}" --output_dir "$out/report" > "$out/table.txt"
}

# held_out NAME [FLAGS...]: the same photographs and seeds for every model
held_out() {
    stage "sample held-out photographs with the $1" generate "$configs/test.yaml" "$out/test/$1" "${@:2}"
    stage "score them" label "$configs/label_test.yaml" "$out/test/$1"
    candidates+=("$1=$out/test/$1")
}

# setting KEY: its value in train.yaml, without quotes and comment, or nothing
setting() { sed -n "s/^$1 *: *//p" "$configs/train.yaml" | sed "s/ *#.*//; s/^[\"']//; s/[\"'] *\$//"; }

run_stages() {
    local configs="$1" out="$2" rounds="${3:-1}" reference="${4:-moved}" started=$SECONDS name round suffix backbone base
    local candidates=() logs=() previous=() flags=() anchor=()
    for name in sample label train test label_test evaluate; do
        if ! [ -f "$configs/$name.yaml" ]; then fail "$configs/$name.yaml is missing; copy configs/tiny_sd2/quickstart and edit the copy"; fi
    done
    backbone=$(setting backbone)  # which of the two training programs
    base=$(setting controlnet_model_name_or_path)
    if [ "$reference" = fixed ] && [ -z "$base" ]; then fail "$configs/train.yaml: names no controlnet_model_name_or_path to stay the reference"; fi
    mkdir -p "$out" || fail "$out: cannot make this folder"
    NUM_STAGES=$((3 * rounds + 5))

    for ((round = 1; round <= rounds; round++)); do
        suffix=""
        name="base"
        if [ "$round" -gt 1 ]; then
            suffix="-$round"
            name="policy of round $((round - 1))"
            flags=("${previous[@]}" --seed "$((round - 1))")
        fi
        stage "sample the training photographs with the $name" generate "$configs/sample.yaml" "$out/candidates$suffix" \
            --images_offset "$((round - 1))" ${flags[@]+"${flags[@]}"}
        stage "score the candidates" label "$configs/label.yaml" "$out/candidates$suffix"
        stage "train the policy on its best and worst" "$PY" -m dp2osr.launch "train_${backbone:-sd2}_dpo.py" --config "$configs/train.yaml" \
            --candidates_dir "$out/candidates$suffix" --scores "$out/candidates$suffix/scores.parquet" --output_dir "$out/policy$suffix" \
            ${flags[@]+"${flags[@]}"} ${anchor[@]+"${anchor[@]}"}
        previous=(--controlnet_model_name_or_path "$out/policy$suffix")
        if [ "$reference" = fixed ]; then
            anchor=(--reference_controlnet_model_name_or_path "$base")
        fi
        logs+=("$out/policy$suffix/train_log.jsonl")
    done
    held_out base
    held_out policy "${previous[@]}"
    stage "compare, and write the report" evaluate

    printf '\nminutes:seconds on %s threads\n%s  %-54s %s\n' "$OMP_NUM_THREADS" "$TIMES" "all stages" "$(clock $((SECONDS - started)))"
    printf '  %-54s %s\n' "with the environment" "$(clock "$SECONDS")"
    printf '\n'
    cat "$out/table.txt"
}
