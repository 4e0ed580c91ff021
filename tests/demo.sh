#!/bin/sh
# The main job from end to end on an embedded model: evaluate, distil, tune, prune, quantise, evaluate again, publish.
# Usage: demo.sh FOLDER (all that it makes goes there)
#
# What $tasks, $asked, $learnt and budget hold are words of their own, and so not quoted.
# shellcheck disable=SC2046,SC2086
set -eu
out=$1
rm -rf "$out"
mkdir -p "$out"
export MHE_RUNS_DIR="$out/runs" MHE_CHECKPOINTS_DIR="$out/checkpoints" MHE_CACHE_DIR="$out/cache" HF_HUB_OFFLINE=1
boards="$out/leaderboards" teacher=tiny-llava-base few=300
tasks="--task phantom-vqa-source --task phantom-caption-source --limit $few"
# One batch size for all, because latencies of different ones cannot be compared.
asked="$tasks --batch-size 32"
learnt="--task phantom-vqa-source --limit 240"

say() { printf '\n== %s\n' "$*" >&2; }
run() { printf '$ %s\n' "$*" >&2; "$@"; }

# One budget for every training: STEP. (of a pipeline) or nothing, STEPS
budget() {
    for setting in learning_rate=1e-3 batch_size=24 max_steps="$2" evaluate_every="$2" keep=last; do
        printf -- '--set %s%s ' "$1" "$setting"
    done
}

say "What is on this machine"
run mhe doctor --offline

say "Evaluate an embedded model and the majority-answer baseline on the first $few phantoms (drawn images)"
run mhe eval --model majority $tasks
run mhe eval --model $teacher $asked

say "The same call again: the runs are done, no model is loaded"
run mhe eval --model $teacher $asked --json > "$out/second-call.json"

say "A student with two of its three language layers, trained on the answers alone, and evaluated by its name"
student="--set preset=neto2025-kd $(budget '' 40)"
run mhe tune --model $teacher --recipe distill --name student-alone $learnt $student --set alpha=0
run mhe eval --model student-alone $asked

say "A pipeline: the same student learns from its teacher, then QLoRA"
settings="--set base=$teacher --set kd.alpha=0.9 $(budget kd. 40) $(budget qlora. 16)"
run mhe tune tiny-llava-kd-qlora $learnt $settings
run mhe eval --model tiny-llava-kd-qlora.kd $asked
run mhe eval --model tiny-llava-kd-qlora $asked

say "A longer pipeline shares these steps, and goes on: adapter put into the weights, 30 % of heads and neurons pruned"
run mhe tune tiny-llava-kd-pruned $learnt $settings
run mhe eval --model tiny-llava-kd-pruned $asked
run mhe show models tiny-llava-kd-pruned

say "Heal what was pruned: it learns from the teacher again, whose targets are kept"
run mhe tune --model tiny-llava-kd-pruned --recipe distill --input teacher=$teacher --name healed $learnt \
    --set alpha=0.9 --set vision=frozen $(budget '' 16)
run mhe eval --model healed $asked

say "The teacher in 4 bits, for comparison"
run mhe tune --model $teacher --recipe quantize --name teacher-nf4
run mhe eval --model teacher-nf4 $asked

say "Publish: a leaderboard is nothing but runs"
run mhe board new compression --title "Compression on phantoms" --task phantom-vqa-source \
    --task phantom-caption-source --limit $few --relative-to $teacher \
    --costs "parameters,bytes,bits per weight,latency p50,peak memory" --leaderboards-dir "$boards" \
    --summary "Drawn images: shows that the chain works, and says nothing of medicine. One seed; everything that is
trained sees the first 240 training questions and no caption (batch 24, rate 1e-3), students for 40 steps, QLoRA and
healing for 16, so that the captions show what is forgotten. Bytes are those of files: the teacher's is in 16 bits,
the others but for the 4-bit one are in 32, and an adapter counts with its base."
enter() { # MODEL ENTRANT KIND SUMMARY
    run mhe board add compression "$out"/runs/*/"$1"/* --leaderboards-dir "$boards" --entrant "$2" --kind "$3" \
        --summary "$4"
}
enter majority majority baseline "the most frequent training answer"
enter $teacher $teacher model "the teacher"
enter student-alone student-alone checkpoint "two of three language layers, trained on the answers"
enter tiny-llava-kd-qlora.kd tiny-llava-kd pipeline "the same student, distilled"
enter tiny-llava-kd-qlora tiny-llava-kd-qlora pipeline "distilled, then QLoRA"
enter tiny-llava-kd-pruned tiny-llava-kd-pruned pipeline "distilled, QLoRA, 30 % of heads and neurons pruned"
enter healed healed checkpoint "pruned, then distilled again"
enter teacher-nf4 teacher-nf4 checkpoint "the teacher in 4 bits (NF4), not trained"
run mhe board build compression --leaderboards-dir "$boards"
run mhe board check compression --leaderboards-dir "$boards"

say "The leaderboard"
cat "$boards/compression/v1/README.md"
printf '\nThe leaderboard lies at %s\n' "$boards/compression/v1/README.md"
