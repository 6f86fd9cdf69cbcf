#!/bin/sh
# Biases of the sigmoid x shifts x schedules on Fashion-MNIST, with paired seeds:
#   sh examples/sweep/sweep.sh [--quick] [FOLDER]
# FOLDER/sweep.md has the tables, sweep.png the picture, samples.png a row of images from each setting. --quick trains fewer
# settings for fewer steps. After an interruption, run it again: it skips finished trainings.
# DATA: the folder of the dataset's four files. JOBS: trainings at a time, by default one a core.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if [ "${1:-}" = --quick ]; then
    shift
    : "${BIASES:=-1 2}" "${SHIFTS:=0 1.65}" "${SCHEDULES:=cosine adaptive}" "${SEEDS:=0 1 2}"
    : "${STEPS:=250}" "${SAMPLES:=300}" "${WALK:=16}" "${IMAGES:=200}" "${EPOCHS:=1}"
fi
# Biases of SiD2 at 128, 256 and 512 pixels (0, -1, -3), the paper's 2, and its shift by 2 log(64/28) at 28 pixels: 3.65.
: "${BIASES:=-3 -1 0 2 3.65}" "${SHIFTS:=-1.65 0 1.65}" "${SCHEDULES:=cosine edm laplace:mean=0,scale=1.5 adaptive}"
: "${SEEDS:=0 1 2 3 4}" "${STEPS:=1500}" "${SAMPLES:=2000}" "${WALK:=32}" "${IMAGES:=2000}" "${EPOCHS:=3}"
: "${DATA:=/usr/share/datasets/fashion-mnist}" "${JOBS:=$(getconf _NPROCESSORS_ONLN)}" "${PYTHON:=python3}"
case $DATA in /*) ;; *) DATA=$PWD/$DATA ;; esac
mkdir -p "${1:-sweep}/results"
cd "${1:-sweep}"
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export BIASES SHIFTS SCHEDULES SEEDS STEPS SAMPLES WALK IMAGES EPOCHS DATA PYTHON OMP_NUM_THREADS
make -s -j "$JOBS" -f "$here/Makefile" HERE="$here"
