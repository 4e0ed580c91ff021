#!/bin/sh
# Makes the runs of the published boards again, from their seeds. What is done already is not done again.
#
# Needs MHE_TEST_DATA, a folder that holds vqa_rad/. Runs and checkpoints go to build/boards; to publish them, see
# docs/boards.md (a changed rule is a new version of a board; an entry is replaced with --replace).
set -eu
: "${MHE_TEST_DATA:?set it to the folder that holds vqa_rad/}"
export MHE_DATA_DIR="$MHE_TEST_DATA" MHE_RUNS_DIR=build/boards/runs MHE_CHECKPOINTS_DIR=build/boards/checkpoints
export HF_HUB_OFFLINE=1

# phantoms: the embedded model beside the baseline.
mhe eval --model tiny-llava --model majority --task phantom-vqa --task phantom-caption

# vqa-rad-tiny: the embedded model before and after training on the official train split. The weights kept are those of
# the lowest validation loss, on images held out of the train split.
mhe tune --model tiny-llava --recipe full --task vqa-rad --name tiny-llava-vqa-rad --set learning_rate=1e-3 \
    --set batch_size=32 --set epochs=16 --set weight_decay=0.05 --set warmup=0.05 --set evaluate_every=54 \
    --set patience=4
mhe eval --model tiny-llava --model tiny-llava-vqa-rad --model majority --task vqa-rad
