#!/usr/bin/env bash
# Train on the eight GPUs of one machine: the two-billion-parameter U-ViT on ImageNet at 512 pixels, its weights sharded.
#
#   elbo prep ILSVRC2012_img_train.tar imagenet512.h5 --size 512 --store webp
#   DRY=1 bash eight-gpus.sh     print the command and what it would take, without a GPU and without the data
#   bash eight-gpus.sh           again after any end: it goes on from the last checkpoint
#
# Further options of elbo train come last, so they win. torchrun says 1 for whatever isn't success; the exit status here is
# 75 where the run was interrupted and has saved (start it again). It is 0 when the run is done, and when it was ended by
# TIME_LIMIT=3h50m or by a file runs/imagenet512/STOP.
set -euo pipefail
DATA=${DATA:-imagenet512.h5}
RUN=${RUN:-runs/imagenet512}
PRESET=${PRESET:-imagenet512}
GPUS=${GPUS:-8}

options=(--preset "$PRESET" --parallel fsdp --activation-checkpointing --precision bf16 --compile
    --time-limit "${TIME_LIMIT:-0}" --val-split 10000 --milestone-every 50000 "$@")
# A worker that dies is started anew, with all others, up to three times. SIGUSR1 to torchrun reaches the workers too, and
# they have ten minutes to save what they are at.
launch=(torchrun --standalone --nproc-per-node "$GPUS" --max-restarts 3
    --signals-to-handle "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1" --shutdown-timeout 600 --no-python)
command=("${launch[@]}" elbo train "$DATA" -o "$RUN" "${options[@]}")

if [[ -n ${DRY:-} ]]; then
    echo "${command[@]@Q}" >&2
    exec elbo train "${options[@]}" --dry-run --devices "$GPUS"
fi
mkdir -p "$(dirname "$RUN")"
rm -f "$RUN/status.json"  # what it says afterwards is of this start
status=0
"${command[@]}" || status=$?
if grep -qs '"state": "interrupted"' "$RUN/status.json"; then
    exit 75
fi
exit "$status"
