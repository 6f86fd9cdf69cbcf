#!/bin/sh
# The tutorial's commands on Fashion-MNIST: sh examples/fashion/demo.sh DOWNLOADED [FOLDER]
# DOWNLOADED holds the four files of the dataset; docs/tutorial.md says where they are from.
# Rerun it after an interruption: what is finished is not done again.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for part in train-images-idx3 train-labels-idx1 t10k-images-idx3 t10k-labels-idx1; do
    [ -e "$1/$part-ubyte.gz" ] || [ -e "$1/$part-ubyte" ] || {
        echo "$1: $part-ubyte.gz is not there; see 'Get the dataset' in docs/tutorial.md, then FASHION=FOLDER make demo-fashion" >&2
        exit 1
    }
done
downloaded=$(cd "$1" && pwd)
mkdir -p "${2:-demo-fashion}"
cd "${2:-demo-fashion}"
ln -sfn "$downloaded" fashion-mnist
ln -sfn "$here/.." examples
"${PYTHON:-python3}" "$here/run_page.py" "$here/tutorial.md.j2" .
