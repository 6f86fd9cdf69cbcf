#!/bin/sh
# Train on one GPU: ImageNet at 64 pixels, with an adaptive schedule and 10000 held-out images.
#
#   elbo prep ILSVRC2012_img_train.tar imagenet64.h5 --size 64
#   DRY=1 sh one-gpu.sh          print the plan, without a GPU and without the data
#   sh one-gpu.sh                train; after any interruption the same command continues from the last checkpoint
#   sh one-gpu.sh --steps 1000   your own options of elbo train come last, so they override those of the script
#
# With REF=ref.npz ('elbo eval imagenet64.h5 --metrics fid --save-stats ref.npz'), 5000 samples are scored every 50000 steps.
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
    set -- --eval-every 50000 --eval-samples 5000 --eval-extractor inception-v3-compat --eval-ref "$REF" "$@"
fi
if [ -n "${DRY:-}" ]; then
    exec elbo train "$@" --dry-run
fi
mkdir -p "$(dirname "$RUN")"
exec elbo train "$DATA" -o "$RUN" "$@"
