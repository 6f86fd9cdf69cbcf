#!/bin/sh
# One training of the sweep, drawn from and measured: cell.sh BIAS_SHIFT_SCHEDULE_SEED, called by make.
# All cells of a seed begin from the same weights, see the same images and noise, and draw from the same noise.
set -eu
cell=$1
bias=${cell%%_*}; rest=${cell#*_}
shift=${rest%%_*}; rest=${rest#*_}
seed=${rest##*_}
schedule=$(printf %s "${rest%_*}" | tr '+^' ':,')
full=$schedule
[ "$shift" = 0 ] || case $schedule in
*:*) full=$schedule,shift=$shift ;;
*) full=$schedule:shift=$shift ;;
esac
begin=$(date +%s)
run=runs/$cell out=results/$cell
elbo train -q train.h5 -o "$run" --preset "${HERE:-$(dirname "$0")}/network.yaml" --weighting "sigmoid:bias=$bias" --schedule "$full" \
    --seed "$seed" --steps "$STEPS" --save-every "$STEPS" --keep-last 1 > /dev/null
elbo sample -q "$run" -n "$SAMPLES" --sampler dpmpp-2m --steps "$WALK" --seed "$seed" -o "$out.h5" --overwrite > /dev/null
elbo eval -q "$out.h5" --ref train.h5 --extractor classifier.pt2 --metrics fid,accuracy --classes balanced > "$out.eval"
elbo bound -q "$run" test.h5 -n "$IMAGES" > "$out.bound"
"$PYTHON" - "$out" "$bias" "$shift" "$schedule" "$seed" "$STEPS" $(($(date +%s) - begin)) <<END
import json, sys
out, bias, shift, schedule, seed, steps, seconds = sys.argv[1:]
scores, bound = (json.load(open(f"{out}.{kind}")) for kind in ("eval", "bound"))
distance, accuracy = (scores["scores"][f"{name}[classifier.pt2]"]["value"] for name in ("frechet_distance", "accuracy"))
cell = {"bias": float(bias), "shift": float(shift), "schedule": schedule, "seed": int(seed), "steps": int(steps)}
found = {"distance": distance, "accuracy": accuracy, "bpd": bound["bpd"], "seconds": int(seconds)}
print(json.dumps(cell | found), file=open(f"{out}.json", "w"))
END
printf 'sweep: %s\n' "$cell" >&2
