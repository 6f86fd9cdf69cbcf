#!/usr/bin/env bash
# Train on the eight GPUs of one machine: the two-billion-parameter U-ViT on ImageNet at 512 pixels, with sharded weights.
#
#   elbo prep ILSVRC2012_img_train.tar imagenet512.h5 --size 512
#   DRY=1 bash eight-gpus.sh     print the command and the plan, without a GPU and without the data
#   bash eight-gpus.sh           train; after any interruption the same command continues from the last checkpoint
#
# A card needs 5 GB, and 1.1 GB per image of the micro-batch; `--activation-checkpointing` takes less, but is slower.
# Your own options of elbo train come last, so they override those of the script. torchrun exits with 1 unless everything
# succeeded. This script exits with 75 if the run was interrupted after saving (start it again). It exits with 0 if the
# run is done, or was ended by TIME_LIMIT=3h50m.
set -euo pipefail
DATA=${DATA:-imagenet512.h5}
RUN=${RUN:-runs/imagenet512}
PRESET=${PRESET:-imagenet512}
GPUS=${GPUS:-8}

options=(--preset "$PRESET" --parallel fsdp --precision bf16 --compile
    --time-limit "${TIME_LIMIT:-0}" --val-split 10000 --keep-every 50000 "$@")
# If a worker ends with an error, torchrun restarts all workers, up to RESTARTS times. RESTARTS=0 suits a first try: torchrun
# also repeats starts that fail each time, such as those that run out of memory.
launch=(torchrun --standalone --nproc-per-node "$GPUS" --max-restarts "${RESTARTS:-3}")
# SIGUSR1 to torchrun reaches the workers too (torch 2.10), and they have ten minutes to save a checkpoint (torch 2.12).
help=$(torchrun --help || true)
if [[ $help == *--signals-to-handle* ]]; then
    launch+=(--signals-to-handle "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
fi
if [[ $help == *--shutdown-timeout* ]]; then
    launch+=(--shutdown-timeout 600)
fi
command=("${launch[@]}" --no-python elbo train "$DATA" -o "$RUN" "${options[@]}")

if [[ -n ${DRY:-} ]]; then
    echo "${command[@]@Q}" >&2
    exec env TORCHELASTIC_RUN_ID=plan WORLD_SIZE="$GPUS" elbo train "${options[@]}" --dry-run
fi
mkdir -p "$(dirname "$RUN")"
rm -f "$RUN/status.json"  # so that it describes this start afterwards
status=0
"${command[@]}" || status=$?
if grep -qs '"state": "interrupted"' "$RUN/status.json"; then
    exit 75
fi
exit "$status"
