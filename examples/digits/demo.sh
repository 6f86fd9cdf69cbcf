#!/bin/sh
# The whole pipeline on real images, with elbo's own commands: sh examples/digits/demo.sh [FOLDER]
# After an interruption run it again: it skips the parts that are finished.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:-demo}"
cd "${1:-demo}"
python=${PYTHON:-python3}
# As many images as test.h5 has: Fréchet distances of different numbers of images can't be compared.
steps=${STEPS:-1000} images=${IMAGES:-449}
mkdir -p results

say() { printf '\n== %s\n' "$*" >&2; }

say "1797 real images of digits, packed"
[ -d digits ] || "$python" "$here/make_digits.py" digits >&2
[ -f train.h5 ] || elbo prep digits/train train.h5 --size 8 --channels 1
[ -f test.h5 ] || elbo prep digits/test test.h5 --size 8 --channels 1
[ -f classifier.pt2 ] || "$python" "$here/make_classifier.py" train.h5 test.h5 classifier.pt2 >&2

# score NAME SAMPLES: score the samples against the training set, in the classifier's features
score() {
    elbo eval -q "$2" --ref train.h5 --extractor classifier.pt2 --metrics fid,accuracy --classes balanced > "results/$1.part"
    mv "results/$1.part" "results/$1.json"
}

# run NAME TITLE OPTIONS...: train, and score images; the last update draws a picture in the run's folder
run() {
    name=$1; title=$2; shift 2
    case " ${LEAVE_OUT:-} " in *" $name "*) return ;; esac
    [ -f "results/$name.json" ] && return
    say "$title"
    begin=$(date +%s)
    elbo train train.h5 -o "run-$name" --preset digits --seed 0 --val test.h5 --preview-every "$steps" "$@" > /dev/null
    elbo bound -q "run-$name" test.h5 > "results/$name.bound"
    elbo sample "run-$name" -n "$images" | score "$name" -
    echo $(($(date +%s) - begin)) > "results/$name.seconds"
}

run 0-untrained "the untrained network, for comparison" --steps 1 --lr 1e-12 --preview-every none
run 1-elbo-cosine "trained with the ELBO's weighting" --weighting elbo --steps "$steps"
run 2-sigmoid-cosine "trained with sigmoid weighting, bias 2" --weighting sigmoid --bias 2 --steps "$steps"

say "a schedule fitted to that run's loss log"
elbo adapt run-2-sigmoid-cosine -o fitted.yaml --plot fitted.png --overwrite
run 3-sigmoid-fitted "trained with sigmoid weighting on the fitted schedule" --weighting sigmoid --bias 2 --schedule fitted.yaml --steps "$steps"

say "the paper's theorem, on the network just trained"
elbo bound run-2-sigmoid-cosine --check -n 200 --weighting sigmoid:bias=2 --weighting edm > results/theorem

say "the weightings and schedules, as a picture"
elbo weights plot elbo sigmoid:bias=2 edm edm-monotonic fm-ot --schedule cosine --schedule edm --schedule fitted.yaml -o weights.png --overwrite
say "real test images, scored the same way"
[ -f results/4-test-images.json ] || score 4-test-images test.h5
say "a run on one page"
elbo report run-2-sigmoid-cosine results/2-sigmoid-cosine.json results/2-sigmoid-cosine.bound results/theorem \
    -o report.html --overwrite
"$python" "$here/table.py" results
printf '\nin %s: report.html, weights.png, fitted.png, and a picture by each run in run-*/previews\n' "$(pwd)"
