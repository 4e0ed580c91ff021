#!/bin/sh
# What the learning rates of the board peft-medvqa-tiny were chosen by: each method's loss on validation images held out
# of VQA-RAD's train split, after the board's budget at several rates. The test split is not looked at.
#
#   MHE_TEST_DATA=… sh leaderboards/rates.sh          needs mhe on the path; finished trainings are not made again
set -eu
: "${MHE_TEST_DATA:?set it to the folder that holds vqa_rad/}"
BUILD=${BUILD:-build/boards}
export MHE_DATA_DIR="$MHE_TEST_DATA" MHE_CHECKPOINTS_DIR="$BUILD/checkpoints" HF_HUB_OFFLINE=1

try() { # RECIPE PRESET|- RATE…
    recipe=$1 preset=$2
    shift 2
    for rate in "$@"; do
        name=rate-$recipe-$rate
        chosen=$([ "$preset" = - ] || echo "--set preset=$preset")
        # shellcheck disable=SC2086
        mhe tune --model tiny-blip-vqa --recipe "$recipe" --task vqa-rad --name "$name" $chosen \
            --set learning_rate="$rate" --set batch_size=10 --set epochs=1 --set weight_decay=0.05 \
            --set scheduler=cosine --set warmup=0.0 --set keep=last ${TUNE_OPTIONS:-} >/dev/null 2>&1
        loss=$(sed -n 's/.*"eval_loss": \([0-9.]*\).*/\1/p' "$MHE_CHECKPOINTS_DIR/$name/0/checkpoint.json" | tail -n 1)
        echo "$recipe $rate: validation loss $loss"
    done
}

try full - 1e-3 2e-3
try lora mile-lora-faa-r4 3e-2 1e-1
try prefix mile-prefix-faa 1e-2 3e-2
try ia3 mile-ia3-faa 1e-1 3e-1
try ptuning-v2 mile-ptv2-faa 3e-2 1e-1
