#!/bin/sh
# The main job from end to end on the embedded default: evaluate, tune, evaluate again, publish.
# Usage: demo.sh FOLDER (all that it makes goes there)
set -eu
out=$1
rm -rf "$out"
mkdir -p "$out"
export MHE_RUNS_DIR="$out/runs" MHE_CHECKPOINTS_DIR="$out/checkpoints" HF_HUB_OFFLINE=1
boards="$out/leaderboards"

say() { printf '\n== %s\n' "$*" >&2; }
run() { printf '$ %s\n' "$*" >&2; "$@"; }

say "What is on this machine"
run mhe doctor --offline

say "Evaluate the embedded model and the majority-answer baseline on phantoms (drawn images)"
run mhe eval --model tiny-llava --model majority --task phantom-vqa --task phantom-caption

say "The same call again: the runs are done, no model is loaded"
run mhe eval --model tiny-llava --task phantom-vqa --json > "$out/second-call.json"

say "Fine-tune it for a moment; the result is a checkpoint with its lineage, evaluated by its name"
run mhe tune --model tiny-llava --recipe full --task phantom-vqa --name tuned --limit 1200 \
    --set max_steps=60 --set batch_size=16 --set learning_rate=1e-4
run mhe eval --model tuned --task phantom-vqa --task phantom-caption

say "Publish: a leaderboard is nothing but runs"
run mhe board new phantoms --title "Phantoms" --task phantom-vqa --task phantom-caption \
    --summary "Drawn images: shows that the chain works, and says nothing of medicine." --leaderboards-dir "$boards"
run mhe board add phantoms "$out"/runs/*/tiny-llava/* --kind model --leaderboards-dir "$boards" \
    --summary "the embedded model"
run mhe board add phantoms "$out"/runs/*/tuned*/* --entrant tuned --kind checkpoint --leaderboards-dir "$boards" \
    --summary "the embedded model after 60 more steps on the questions"
run mhe board add phantoms "$out"/runs/*/majority/* --kind baseline --leaderboards-dir "$boards" \
    --summary "the most frequent training answer"
run mhe board build phantoms --leaderboards-dir "$boards"
run mhe board check phantoms --leaderboards-dir "$boards"

say "The leaderboard"
cat "$boards/phantoms/v1/README.md"
printf '\nThe leaderboard lies at %s\n' "$boards/phantoms/v1/README.md"
