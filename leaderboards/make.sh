#!/bin/sh
# Makes the runs of the published boards again, from their seeds. What is done already is not done again.
#
# Each model runs in a process of its own, so that its memory can be measured. Needs MHE_TEST_DATA, a folder that holds vqa_rad/. Runs and checkpoints go to build/boards; to publish them, see
# docs/boards.md (a changed rule is a new version of a board; an entry is replaced with --replace).
set -eu
: "${MHE_TEST_DATA:?set it to the folder that holds vqa_rad/}"
export MHE_DATA_DIR="$MHE_TEST_DATA" MHE_RUNS_DIR=build/boards/runs MHE_CHECKPOINTS_DIR=build/boards/checkpoints
export HF_HUB_OFFLINE=1

# phantoms: the embedded model beside the baseline.
for model in tiny-llava majority; do
    mhe eval --model "$model" --task phantom-vqa --task phantom-caption
done

# vqa-rad-tiny: the embedded model before and after training on the official train split. The weights kept are those of
# the lowest validation loss, on images held out of the train split.
mhe tune --model tiny-llava --recipe full --task vqa-rad --name tiny-llava-vqa-rad --set learning_rate=1e-3 \
    --set batch_size=32 --set epochs=16 --set weight_decay=0.05 --set warmup=0.05 --set evaluate_every=54 \
    --set patience=4
for model in tiny-llava tiny-llava-vqa-rad majority; do
    mhe eval --model "$model" --task vqa-rad
done
