#!/bin/sh
# Train on one GPU: ImageNet at 64 pixels, with an adaptive schedule and 10000 held-out images.
#
#   elbo prep ILSVRC2012_img_train.tar imagenet64.h5 --size 64
#   DRY=1 sh one-gpu.sh          print the plan, without a GPU and without the data
#   sh one-gpu.sh                train; after any interruption the same command continues from the last checkpoint
#   sh one-gpu.sh --steps 1000   your own options of elbo train come last, so they override those of the script
#
# With REF=ref.npz ('elbo eval imagenet64.h5 --metrics fid --save-stats ref.npz'), checkpoints are scored during training.
# Scoring runs on the CPU, because training fills the card's memory; SCORE_DEVICE=cuda:1 uses a second card. One score
# takes 5000 images of 16 evaluations at 219 GFLOP each, which is 1.8e16 operations. A CPU that sustains 1 TFLOP/s needs
# 5 hours for them, another card minutes. Training does not wait; the next score is that of the newest checkpoint.
#
# The exit status is that of elbo train: 0 done, 130 or 143 interrupted after saving; any other status is a failure.
set -eu
DATA=${DATA:-imagenet64.h5}
RUN=${RUN:-runs/imagenet64}
PRESET=${PRESET:-imagenet64}

# elbo divides the batch of 4096 into as many parts as the GPU's memory requires.
set -- --preset "$PRESET" --schedule adaptive --precision bf16 --compile \
    --val-split 10000 --keep-every 50000 --log-to tensorboard "$@"
if [ -n "${REF:-}" ]; then
    SCORE_DEVICE=${SCORE_DEVICE:-cpu}
    export REF SCORE_DEVICE
    # shellcheck disable=SC2016  # the variables are the command's, not ours
    set -- --on-checkpoint 'nice elbo sample -q "$ELBO_CHECKPOINT" -n 5000 --sampler dpmpp-2m --steps 16 \
        --device "$SCORE_DEVICE" | nice elbo eval -q --ref "$REF" --device "$SCORE_DEVICE" \
        > "$ELBO_RUN/fid-$ELBO_STEP.json"' "$@"
fi
if [ -n "${DRY:-}" ]; then
    exec elbo train "$@" --dry-run
fi
mkdir -p "$(dirname "$RUN")"
exec elbo train "$DATA" -o "$RUN" "$@"
