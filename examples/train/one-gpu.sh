#!/bin/sh
# Train on one GPU: ImageNet at 64 pixels, sampled by a schedule that adapts, 10000 images held out.
#
#   elbo prep ILSVRC2012_img_train.tar imagenet64.h5 --size 64
#   DRY=1 sh one-gpu.sh          what it would take, without a GPU and without the data
#   sh one-gpu.sh                again after any end: it goes on from the last checkpoint
#   sh one-gpu.sh --steps 1000   further options of elbo train come last, so they win
#
# With REF=ref.npz ('elbo eval imagenet64.h5 --metrics fid --save-stats ref.npz'), checkpoints are scored while training
# goes on: not on its card, whose memory it fills, but on the CPU, or on SCORE_DEVICE=cuda:1 where there is another. What
# it costs: 5000 images of 16 evaluations, 219 GFLOP each, are 1.8e16 operations. A CPU that sustains 1 TFLOP/s takes
# 5 hours for them, another card minutes. Training doesn't wait, and the newest checkpoint is scored next.
#
# Exit status as of elbo train: 0 done, 130 or 143 interrupted after saving, else it failed.
set -eu
DATA=${DATA:-imagenet64.h5}
RUN=${RUN:-runs/imagenet64}
PRESET=${PRESET:-imagenet64}

# A batch of 4096 is seen in as many parts as the GPU's memory needs; elbo finds out how many.
set -- --preset "$PRESET" --schedule adaptive --precision bf16 --compile \
    --val-split 10000 --milestone-every 50000 --on-nonfinite skip --log-to tensorboard "$@"
if [ -n "${REF:-}" ]; then
    SCORE_DEVICE=${SCORE_DEVICE:-cpu}
    export REF SCORE_DEVICE
    # shellcheck disable=SC2016  # the variables are the command's, not ours
    set -- --on-checkpoint 'nice elbo sample -q "$ELBO_CHECKPOINT" -n 5000 --sampler dpmpp-2m --steps 16 \
        --device "$SCORE_DEVICE" | nice elbo eval -q --ref "$REF" --device "$SCORE_DEVICE" \
        > "$ELBO_RUN/fid-$ELBO_STEP.json"' "$@"
fi
if [ -n "${DRY:-}" ]; then
    exec elbo train "$@" --dry-run --devices 1
fi
mkdir -p "$(dirname "$RUN")"
exec elbo train "$DATA" -o "$RUN" "$@"
