# Functions for tests/test_pages.py, which runs the commands of pages.
# shellcheck shell=bash disable=SC2329

# Commands that would need a network, or build things in the checkout
make() { command make --dry-run --directory "$ROOT" "$@"; }
man() { cat "$ROOT/man/$1".[15]; }
pip() { # passes if setup.cfg has that extra
    extra=${2##*[}
    extra=${extra%]}
    grep "^$extra" "$ROOT/setup.cfg"
}

# Without jq, its input is read and nothing is looked up in it
command -v jq > /dev/null || jq() { cat > /dev/null; }

# Replace commands by functions that write what `elbo` was given to the file $CALLS
record_calls() {
    elbo() {
        flock "$CALLS" bash -c 'printf "%s\0" "${@:2}" >> "$1"; echo >> "$1"' - "$CALLS" "$@"  # parts of a pipe run at once
    }
    torchrun() {
        while [[ $1 != elbo* ]]; do shift; done
        elbo "${@:2}"
    }
    python() { :; }
    python3() { :; }
    sh() { :; }
    jq() { :; }
    tar() { :; }
}

# Make small files with the names of ImageNet's and Fashion-MNIST's, and the datasets that commands name, from first.h5 and digits/
make_files() {
    data=ILSVRC/Data/CLS-LOC
    mkdir -p $data/train $data/val ILSVRC2012_devkit_t12/data shard fashion-mnist
    ln -s $data CLS-LOC
    ln -s ILSVRC2012_devkit_t12 devkit
    for name in out other big data train raw fashion images imagenet64 imagenet256 work/train work/test full/train full/test; do cp first.h5 $name.h5; done
    for folder in work full ablation; do cp classifier.pt2 $folder; done
    echo ImageId,PredictionString > LOC_val_solution.csv
    for k in 1 2; do
        id=n0000000$k; name=ILSVRC2012_val_0000000$k
        cp -rL digits/$k $data/train/$id
        cp digits/$k/000$k.png $data/val/$name.JPEG
        tar -C $data/train/$id -cf $id.tar .
        echo "$id class $k" >> LOC_synset_mapping.txt
        echo "$name,$id 1 1 5 5" >> LOC_val_solution.csv
        echo "$name.JPEG $((k - 1))" >> val.txt
        echo $k >> ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt
        cp $data/val/$name.JPEG shard/$k.png; echo $k > shard/$k.cls
    done
    cp LOC_synset_mapping.txt synset_words.txt
    tar -cf ILSVRC2012_img_train.tar n0*.tar
    tar -C $data/val -cf ILSVRC2012_img_val.tar .
    tar -czf ILSVRC2012_devkit_t12.tar.gz ILSVRC2012_devkit_t12
    tar -C shard -cf train-000.tar .
    for part in train t10k; do
        { printf '\0\0\10\3\0\0\0\50\0\0\0\10\0\0\0\10'; head -c 2560 /dev/urandom; } | gzip > fashion-mnist/$part-images-idx3-ubyte.gz
        { printf '\0\0\10\1\0\0\0\50'; head -c 40 /dev/zero; } | gzip > fashion-mnist/$part-labels-idx1-ubyte.gz
    done
    python3 -m zipfile -c stranger.zip digits/
}
