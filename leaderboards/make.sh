#!/bin/sh
# Makes the runs of the published boards again, from their seeds, and enters those that do not stand there yet.
#
#   make boards                             all boards
#   make boards BOARD=peft-medvqa-tiny      one board; several: BOARD="phantoms phantom-tuning"
#   make boards BOARD=… ONLY='mile-ia3-*'   those entrants alone, by patterns of the shell
#   make boards MISSING=yes                 only who does not stand on the board yet
#
# What is done already is not done again: finished trainings and runs lie in $BUILD, interrupted ones go on from their
# last save, and an entry that stands on a board stays (docs/boards.md: it is replaced with --replace, and a changed
# rule is a new version). Each model runs in a process of its own, so that its memory can be measured. Boards of real
# data need MHE_TEST_DATA, a folder that holds vqa_rad/.
#
# For proofs on slices: BUILD (runs and checkpoints), LEADERBOARDS (where the boards lie), and more options of the
# commands in TUNE_OPTIONS and EVAL_OPTIONS.
set -eu
ALL="phantoms vqa-rad-tiny peft-medvqa-tiny phantom-tuning efficient-vqa-rad-tiny"
BUILD=${BUILD:-build/boards} LEADERBOARDS=${LEADERBOARDS:-leaderboards} ONLY=${ONLY:-*}
export MHE_RUNS_DIR="$BUILD/runs" MHE_CHECKPOINTS_DIR="$BUILD/checkpoints" HF_HUB_OFFLINE=1
[ -z "${MHE_TEST_DATA:-}" ] || export MHE_DATA_DIR="$MHE_TEST_DATA"
mkdir -p "$BUILD"

stands() { # BOARD TASK ENTRANT[@SEED]
    case "$3" in
        *@*) [ -e "$LEADERBOARDS/$1/v1/entries/${3%@*}/$2/${3#*@}" ] ;;
        *) [ -e "$LEADERBOARDS/$1/v1/entries/$3/$2" ] ;;
    esac
}

is_wanted() { # BOARD TASK ENTRANT[@SEED]
    [ -z "${MISSING:-}" ] || ! stands "$@" || return 1
    set -f
    for pattern in $ONLY; do
        # shellcheck disable=SC2254
        case "${3%@*}" in $pattern) set +f && return 0 ;; esac
    done
    set +f
    return 1
}

needs_data() {
    : "${MHE_TEST_DATA:?set it to the folder that holds vqa_rad/}"
}

enter() { # BOARD TASK MODEL[@SEED] KIND SUMMARY OPTION…
    is_wanted "$1" "$2" "$3" || return 0
    board=$1 task=$2 model=$3 kind=$4 summary=$5
    shift 5
    mhe eval --model "$model" --task "$task" "$@" ${EVAL_OPTIONS:-} >"$BUILD/last-run.txt"
    run=$(sed -n 's/^Run: //p' "$BUILD/last-run.txt")
    stands "$board" "$task" "$model" ||
        mhe board add "$board" "$run" --leaderboards-dir "$LEADERBOARDS" --kind "$kind" --summary "$summary"
}

tuned() { # BOARD TASK NAME SUMMARY BASE RECIPE SETTINGS…
    is_wanted "$1" "$2" "$3" || return 0
    board=$1 task=$2 name=$3 summary=$4 base=$5 recipe=$6
    shift 6
    mhe tune --model "$base" --recipe "$recipe" --task "$task" --name "$name" "$@" ${TUNE_OPTIONS:-}
    enter "$board" "$task" "$name" checkpoint "$summary"
}

# ------------------------------------------------------------ phantoms: the embedded model beside the baseline

phantoms() {
    for task in phantom-vqa phantom-caption; do
        enter phantoms $task tiny-llava model "trained on phantoms alone"
        enter phantoms $task majority baseline "the most frequent training answer"
    done
}

# ------------------------------------------------------------ vqa-rad-tiny: before and after the official train split

# The weights kept are those of the lowest validation loss, on images held out of the train split.
vqa_rad_tiny() {
    needs_data
    enter vqa-rad-tiny vqa-rad tiny-llava model "trained on phantoms alone"
    enter vqa-rad-tiny vqa-rad majority baseline "the most frequent training answer of closed and of open questions"
    tuned vqa-rad-tiny vqa-rad tiny-llava-vqa-rad \
        "then trained on the train split (full, lowest validation loss)" tiny-llava full \
        --set learning_rate=1e-3 --set batch_size=32 --set epochs=16 --set weight_decay=0.05 --set warmup=0.05 \
        --set evaluate_every=54 --set patience=4
}

# ------------------------------------------------------------ peft-medvqa-tiny: MILE's Tables 1 to 5 in small

# One budget for every row: one pass over the train split. Rates were chosen by validation loss on images held out of
# the train split (leaderboards/rates.sh): one for each method where it is alone, and full tuning's wherever a module
# is trained whole.
BUDGET="batch_size=10 epochs=1 weight_decay=0.05 scheduler=cosine warmup=0.0 keep=last"
FULL_RATE=1e-3 LORA_RATE=3e-2 PREFIX_RATE=1e-2 IA3_RATE=3e-1 PTV2_RATE=1e-1

budget() { # STEP. (of a pipeline) or nothing, RATE
    for setting in $BUDGET learning_rate="$2"; do printf -- '--set %s%s ' "$1" "$setting"; done
}

mile() { # RECIPE METHOD ROW RATE SUMMARY
    # The settings are words of their own, and so not quoted.
    # shellcheck disable=SC2046
    tuned peft-medvqa-tiny vqa-rad "mile-$2-$3" "$5" tiny-blip-vqa "$1" --set preset="mile-$2-$3" $(budget "" "$4")
}

two_stages() { # PIPELINE SUMMARY STEP…
    is_wanted peft-medvqa-tiny vqa-rad "$1" || return 0
    pipeline=$1 summary=$2
    shift 2
    # shellcheck disable=SC2046
    mhe tune "$pipeline" --task vqa-rad --set base=tiny-blip-vqa ${TUNE_OPTIONS:-} \
        $(for step in "$@"; do budget "$step." $FULL_RATE; done)
    enter peft-medvqa-tiny vqa-rad "$pipeline" pipeline "$summary"
}

peft_medvqa_tiny() {
    needs_data
    enter peft-medvqa-tiny vqa-rad majority baseline "the most frequent training answer of closed and of open questions"
    enter peft-medvqa-tiny vqa-rad tiny-blip-vqa model "F F F: the base, trained on source phantoms alone"
    # shellcheck disable=SC2046
    tuned peft-medvqa-tiny vqa-rad mile-full "T T T: full tuning, as MISS" tiny-blip-vqa full $(budget "" $FULL_RATE)
    for rank in 4 8; do
        mile lora lora "tta-r$rank" $FULL_RATE "Table 1, T T LoRA, rank $rank"
        mile lora lora "taa-r$rank" $FULL_RATE "Table 1, T LoRA LoRA, rank $rank"
        mile lora lora "fta-r$rank" $FULL_RATE "Table 1, F T LoRA, rank $rank"
        mile lora lora "aaa-r$rank" $LORA_RATE "Table 1, LoRA LoRA LoRA, rank $rank"
        mile lora lora "faa-r$rank" $LORA_RATE "Table 1, F LoRA LoRA, rank $rank"
    done
    mile prefix prefix tta $FULL_RATE "Table 2, T T Prefix"
    mile prefix prefix taa $FULL_RATE "Table 2, T Prefix Prefix"
    mile prefix prefix faa $PREFIX_RATE "Table 2, F Prefix Prefix"
    mile ia3 ia3 tta $FULL_RATE "Table 3, T T IA3"
    mile ia3 ia3 fta $FULL_RATE "Table 3, F T IA3"
    mile ia3 ia3 taa $FULL_RATE "Table 3, T IA3 IA3"
    mile ia3 ia3 aaa $IA3_RATE "Table 3, IA3 IA3 IA3"
    mile ia3 ia3 faa $IA3_RATE "Table 3, F IA3 IA3"
    mile ptuning-v2 ptv2 tta $FULL_RATE "Table 4, T T PTV2"
    mile ptuning-v2 ptv2 taa $FULL_RATE "Table 4, T PTV2 PTV2"
    mile ptuning-v2 ptv2 faa $PTV2_RATE "Table 4, F PTV2 PTV2"
    mile ptuning-v2 ptv2 ffa $PTV2_RATE "Table 4, F F PTV2"
    two_stages mile-instruction "Table 5, T T T on instructions alone" instruction
    two_stages mile-two-stage "Table 5, T T T on the pairs, then on instructions" original instruction
}

# ------------------------------------------------------------ phantom-tuning: every recipe on every family

# Bases of the source phantoms, tuned on the first 1,200 pairs of the target part. One rate a recipe, the same for all
# families and not searched.
BASES=${BASES:-tiny-llava-base tiny-qwen2-vl tiny-mllama tiny-visiongpt2 tiny-llava-next}

target() { # BASE RECIPE SETTING…
    base=$1 recipe=$2
    shift 2
    settings=""
    for setting in limit=1200 batch_size=16 epochs=2 keep=last "$@"; do
        case "$setting" in
            limit=*) settings="$settings --limit ${setting#limit=}" ;;
            *) settings="$settings --set $setting" ;;
        esac
    done
    # shellcheck disable=SC2086
    tuned phantom-tuning "$(target_task "$base")" "$base-$recipe" "$base tuned by $recipe" "$base" "$recipe" $settings
}

target_task() { # BASE
    case "$1" in tiny-visiongpt2) echo phantom-caption-target ;; *) echo phantom-vqa-target ;; esac
}

phantom_tuning() {
    for task in phantom-vqa-target phantom-caption-target; do
        enter phantom-tuning $task majority baseline "the most frequent training answer"
    done
    adapted="vision=adapter fusion=adapter"
    for base in $BASES; do
        enter phantom-tuning "$(target_task "$base")" "$base" model "trained on source phantoms alone"
        target "$base" full learning_rate=5e-4
        target "$base" lora learning_rate=3e-3 dropout=0 $adapted
        target "$base" qlora learning_rate=2e-3 dropout=0 $adapted
        target "$base" dora learning_rate=3e-3 dropout=0 $adapted
        # shellcheck disable=SC2046
        target "$base" ia3 learning_rate=3e-2 $adapted $(ia3_targets_of "$base")
        target "$base" prefix learning_rate=3e-3
        target "$base" ptuning-v2 learning_rate=3e-2
        target "$base" bitfit learning_rate=3e-3 vision=biases fusion=biases language="$(biases_of "$base")"
        target "$base" staged learning_rate=5e-4
        [ "$base" = tiny-visiongpt2 ] || target "$base" instruction learning_rate=5e-4
    done
}

ia3_targets_of() { # BASE: GPT-2 keeps the keys and values of its cross-attention in one layer
    [ "$1" != tiny-visiongpt2 ] || echo 'fusion_targets=["c_attn"]'
}

biases_of() { # BASE: language models of Mistral and Llama have none
    case "$1" in tiny-qwen2-vl | tiny-visiongpt2) echo biases ;; *) echo frozen ;; esac
}

# ------------------------------------------------------------ efficient-vqa-rad-tiny: the entrants of Neto et al. in small

# The nine rows of their Table I, the base of LLaVA, which is its own teacher, and the baseline. One budget for every
# step that trains; the rate is that of the small pipelines and was not searched. Validation is on images held out of
# the train split.
EFFICIENT_BUDGET="batch_size=16 epochs=3 evaluate_every=54 patience=3 keep=best"
EFFICIENT_SEEDS=${EFFICIENT_SEEDS:-0 1 2}

efficient() { # PIPELINE SUMMARY STEP… (those that train)
    pipeline=$1 summary=$2
    shift 2
    settings=""
    for step in "$@"; do
        for setting in $EFFICIENT_BUDGET; do settings="$settings --set $step.$setting"; done
    done
    for seed in $EFFICIENT_SEEDS; do
        is_wanted efficient-vqa-rad-tiny vqa-rad "$pipeline@$seed" || continue
        # shellcheck disable=SC2086
        mhe tune "$pipeline" --task vqa-rad --seed "$seed" $settings ${TUNE_OPTIONS:-}
        # Latencies of other batch sizes cannot be compared, and what is chosen for a machine may differ by model.
        enter efficient-vqa-rad-tiny vqa-rad "$pipeline@$seed" pipeline "$summary" --batch-size 16
    done
}

efficient_vqa_rad_tiny() {
    needs_data
    board=efficient-vqa-rad-tiny
    enter $board vqa-rad majority baseline "the most frequent training answer of closed and of open questions"
    enter $board vqa-rad tiny-qwen2-vl model "Qwen2-VL, base" --batch-size 16
    efficient tiny-qwen-qlora "Qwen2-VL + QLoRA" qlora
    efficient tiny-qwen-qlora-pruned "Qwen2-VL + QLoRA + pruning" qlora
    enter $board vqa-rad tiny-mllama model "Llama 3.2 Vision, base" --batch-size 16
    efficient tiny-llama-qlora "Llama 3.2 Vision + QLoRA" qlora
    efficient tiny-llama-qlora-pruned "Llama 3.2 Vision + QLoRA + pruning" qlora
    enter $board vqa-rad tiny-llava model "LLaVA, base and teacher (no row of the paper)" --batch-size 16
    efficient tiny-llava-kd "LLaVA + KD" kd
    efficient tiny-llava-kd-qlora "LLaVA + KD + QLoRA" kd qlora
    efficient tiny-llava-kd-pruned "LLaVA + KD + QLoRA + pruning" kd qlora
}

for board in ${BOARD:-$ALL}; do
    case " $ALL " in
        *" $board "*) ;;
        *) echo "no board $board; there are: $ALL" >&2 && exit 2 ;;
    esac
    "$(echo "$board" | tr - _)"
    mhe board build "$board" --leaderboards-dir "$LEADERBOARDS"
done
