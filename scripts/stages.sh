# Sourced after environment.sh: run_stages CONFIG_DIR OUTPUT_DIR [ROUNDS [REFERENCE]] - the whole method, one stage after the other.
# Numbers and input paths are in CONFIG_DIR/*.yaml; where each stage writes is decided here, because the next stage reads it there.
# One round is the paper's method. Each further round samples with the policy of the one before, with new seeds, and starts from it;
# its reference is that policy (REFERENCE moved, the default) or stays the base (fixed).
# Every stage resumes: stopped anywhere, the same command goes on where it was; after an error it says what to do first.

# Noise that a reader takes for failure; a model or metric that is not on disk must fail at once, not search the network.
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}" TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error GLOG_minloglevel=2 HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"

source "${BASH_SOURCE[0]%/*}/messages.sh"

STAGE=0
TIMES=""
SETTINGS="sample label train test label_test evaluate"  # .yaml, of a CONFIG_DIR
SAME_COMMAND="${SAME_COMMAND:-the same command}"         # a script sets it to what its user typed

# stage TITLE COMMAND...
stage() {
    local title="$1" start=$SECONDS status=0
    shift
    STAGE=$((STAGE + 1))
    printf '\n[%d/%d] %s\n' "$STAGE" "$NUM_STAGES" "$title"
    "$@" || status=$?
    if [ "$status" -ne 0 ]; then
        echo "stopped in stage $STAGE/$NUM_STAGES ($title), exit code $status$(what_next "$status")" >&2
        exit "$status"
    fi
    TIMES+=$(printf '  %-54s %s' "[$STAGE/$NUM_STAGES] $title" "$(clock $((SECONDS - start)))")$'\n'
}

# what_next STATUS: after an interrupt the same command goes on; after a mistake of the user's it would make it again
what_next() {
    case $1 in
        2) echo "; mend what the error above says, then run again: $SAME_COMMAND" ;;
        129 | 130 | 143) echo "; the same command goes on from here: $SAME_COMMAND" ;;
        137) echo ": killed, most often because memory did not suffice; with more free, the same command goes on from here: $SAME_COMMAND" ;;
        *) echo "; the error above may come again; the finished stages are kept, and this one is tried again by: $SAME_COMMAND" ;;
    esac
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

# setting KEY: its value in train.yaml, or nothing. The programs read that file as YAML; what this cannot read as they do is an error.
setting() {
    local file="$configs/train.yaml" value
    [ "$(LC_ALL=C tr -dc '\000' <"$file" | wc -c)" -eq 0 ] || fail "$(quoted "$file") is not text in UTF-8"
    value=$(LC_ALL=C tr '\r' '\n' <"$file" | LC_ALL=C sed $'1s/^\xEF\xBB\xBF//' | LC_ALL=C awk -v key="$1" '
        { text = $0; sub(/^#.*/, "", text); sub(/[ \t]#.*/, "", text) }
        text ~ /^[ \t]*$/ { next }
        seen && text ~ /^[ \t]/ { odd = 1 }  # the value goes on in this line
        { seen = 0 }
        text ~ /^[{?]/ || text ~ "^[ \t]+[\"\047]?" key "[\"\047]?[ \t]*:" { odd = 1 }
        match($0, "^(" key "|\"" key "\"|\047" key "\047)[ \t]*:([ \t]|$)") {
            value = substr($0, RLENGTH + 1)
            gsub(/^[ \t]+|[ \t]+$/, "", value)
            if (value ~ /^"[^"\\]*"([ \t]+#.*)?$/) { sub(/"([ \t]+#.*)?$/, "", value); value = substr(value, 2) }
            else if (value ~ /^\047[^\047]*\047([ \t]+#.*)?$/) { sub(/\047([ \t]+#.*)?$/, "", value); value = substr(value, 2) }
            else {
                sub(/^#.*|[ \t]+#.*/, "", value)
                if (value ~ /^["\047&*!|>%@`{\[]/ || value ~ /: /) odd = 1
                if (value ~ /^(~|null|Null|NULL)$/) value = ""
            }
            seen = 1
            if (count++) odd = 1
            found = value
        }
        END { print found; exit odd }') || fail "$(quoted "$file"): $1 must stand there once, in a line of its own: $1: value"
    printf '%s\n' "$value"
}

# check_stages CONFIG_DIR OUTPUT_DIR [ROUNDS [REFERENCE]]: what can be known before anything is installed or run
check_stages() {
    local configs="$1" name missing=() copies=() backbone="" base="" list
    if [ -f "$configs/train.yaml" ] && [ -r "$configs/train.yaml" ]; then
        backbone=$(setting backbone) || exit 2
        base=$(setting controlnet_model_name_or_path) || exit 2
    fi
    if ! [[ "${backbone:-sd2}" =~ ^(sd2|flux)$ ]]; then fail "$(quoted "$configs/train.yaml"): backbone is '$backbone', must be sd2 or flux"; fi
    for name in $SETTINGS; do
        if [ -f "$configs/$name.yaml" ] && [ -r "$configs/$name.yaml" ]; then continue; fi
        missing+=("$name.yaml")
        copies+=("$PWD/configs/tiny_${backbone:-sd2}/quickstart/$name.yaml")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        list=$(printf ', %s' "${missing[@]}")
        fail "$(quoted "$configs"): ${list#, } missing or unreadable; copy and edit: $(quoted cp "${copies[@]}" "$configs/")"
    fi
    if [ "${4:-moved}" = fixed ] && [ -z "$base" ]; then
        fail "$(quoted "$configs/train.yaml"): names no controlnet_model_name_or_path to stay the reference"
    fi
    make_folder "$2" OUTPUT_DIR
}

run_stages() {
    local configs="$1" out="$2" rounds="${3:-1}" reference="${4:-moved}" started=$SECONDS name round suffix backbone base
    local candidates=() logs=() previous=() flags=() anchor=()
    check_stages "$@"
    backbone=$(setting backbone)  # which of the two training programs
    base=$(setting controlnet_model_name_or_path)
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
