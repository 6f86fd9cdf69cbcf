#!/bin/sh
# A network of one's own, trained by elbo and by another program: sh examples/networks/demo.sh [FOLDER]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:-demo-networks}"
cd "${1:-demo-networks}"
python=${PYTHON:-python3} steps=${STEPS:-1000}
[ -d digits ] || "$python" "$here/../digits/make_digits.py" digits
[ -f train.h5 ] || elbo prep -q digits/train train.h5 --size 8 --channels 1
[ -f test.h5 ] || elbo prep -q digits/test test.h5 --size 8 --channels 1
export ELBO_PLUGIN="$here/small.py"

# trained by elbo
elbo train -q train.h5 -o trained --preset "$here/small.yaml" --steps "$steps"

# trained by another program, and imported
[ -f own.safetensors ] || PYTHONPATH="$here" "$python" "$here/own_loop.py" train.h5 "$steps" own.safetensors
[ -d imported ] || elbo import -q own.safetensors imported --network small:channels=32,depth=6 \
    --prefix net. --rename =network. --size 8 --channels 1 --num-classes 10 --prediction v --logsnr-min -10 --logsnr-max 10

for run in trained imported; do
    elbo sample -q "$run" -n 100 --sampler ddim --guidance-scale 1.5 -o "$run.png" --overwrite
    elbo bound -q "$run" test.h5 --images 100 > "$run.json"
    elbo bound -q "$run" test.h5 --images 100 --check --weighting sigmoid:bias=2 > "$run.check.json"
    elbo report -q "$run" "$run.json" "$run.check.json" -o "$run.html" --overwrite
done
printf 'bits per dimension: trained %s, imported %s\n' \
    "$("$python" -c 'import json; print(round(json.load(open("trained.json"))["bpd"], 3))')" \
    "$("$python" -c 'import json; print(round(json.load(open("imported.json"))["bpd"], 3))')"
