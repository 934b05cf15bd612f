#!/usr/bin/env bash
# Everything that needs a GPU, in parts of at most nine minutes each.
#
#   benchmarks/gpu_evidence.sh [PART...]     # all parts that are not done yet, or the ones named
#   TOY=1 benchmarks/gpu_evidence.sh         # the same commands at toy size, for a machine without
#
# A part that is done is not repeated: remove OUT/done/PART to have it again. A training that its
# part had no time to finish goes on when the script is called again.
#
#   OUT       where rows, logs, pages and runs go     (runs/gpu-evidence)
#   PYTHON    a Python with torch                     (python3)
#   CIFAR100  folder with train/ and test/ of images  (else unpacked from the tars in TARS)
#   TARS      folder with *.tar of such a folder      (data/cifar100-tars)
#   LIMIT     seconds a part may take                 (540)
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-runs/gpu-evidence}
PYTHON=${PYTHON:-python3}
TARS=${TARS:-data/cifar100-tars}
LIMIT=${LIMIT:-540}
TOY=${TOY:-}
ROWS=$OUT/gpu.jsonl
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$OUT/done" "$OUT/logs"

pick() { if [ -n "$TOY" ]; then echo "$2"; else echo "$1"; fi; }  # full size, toy size

# A command that is run until it has ended by itself: what it says of a failure is kept, and no other waits for it.
once() {
    local name=$1 left=$((LIMIT - SECONDS + STARTED)) status=0
    shift
    if [ -e "$OUT/done/$name" ]; then return; fi
    if [ "$left" -lt 20 ]; then return 1; fi
    echo "-- $name"
    timeout --signal=INT "$left" "$@" || status=$?
    if [ "$status" = 124 ]; then return 1; fi
    if [ "$status" != 0 ]; then echo "FAILED ($status): $name" | tee -a "$OUT/failures.txt"; fi
    touch "$OUT/done/$name"
}

adautomix() { once "$1" "$PYTHON" -m adautomix "${@:2}"; }

# The data set: a folder that is there, or one unpacked from tars, or CIFAR-100 not at all.
cifar100() {
    if [ -n "${CIFAR100:-}" ]; then echo "$CIFAR100"; return; fi
    local folder=${TMPDIR:-/tmp}/adautomix-cifar100
    if [ ! -e "$folder/.whole" ] && compgen -G "$TARS/*.tar" >/dev/null; then
        mkdir -p "$folder"
        for tar in "$TARS"/*.tar; do tar -xf "$tar" -C "$folder"; done
        touch "$folder/.whole"
    fi
    if [ -e "$folder/.whole" ]; then echo "$folder"; else echo digits; fi
}

# Compiled and captured steps against eager ones, steps under the sync debug mode, golden vectors.
correctness() {
    once correctness-tests "$PYTHON" -m pytest -q -rA -p no:cacheprovider tests/training/test_runtimes.py tests/methods/test_golden.py tests/test_ema.py
}

# Half precision gives the accuracy of single.
precision() {
    for precision in fp32 bf16; do
        for method in vanilla adautomix; do
            adautomix "precision-$method-$precision" train --data "$(cifar100)" --method $method --precision $precision \
                --epochs "$(pick 5 1)" --width "$(pick 1 0.125)" --per-class "$(pick 500 10)" --batch-size "$(pick 100 20)" \
                --out "$OUT/precision/$method-$precision" || return 1
        done
    done
    adautomix precision-page report "$OUT"/precision/* --out "$OUT/precision.html" --rows "$OUT/precision.jsonl"
}

# Step times of all methods and several backbones, in each way to run a step.
steps() {
    local shapes shape model batch size runtime precision
    shapes=$(pick "resnet18:100:32 resnet18:100:64 resnext50_32x4d:100:32 convnext_tiny:100:32 resnet50:128:224" "resnet18:8:32")
    for runtime in $(pick "eager graph compile" "eager"); do
        for shape in $shapes; do
            IFS=: read -r model batch size <<<"$shape"
            for precision in $(pick "bf16 fp32" "fp32"); do
                adautomix "steps-$runtime-$shape-$precision" bench --methods "$(pick all vanilla,mixup,adautomix)" --model "$model" \
                    --batch-size "$batch" --size "$size" --width "$(pick 1 0.125)" --precision "$precision" --runtime "$runtime" \
                    --steps "$(pick 30 2)" --rows "$ROWS" || return 1
            done
        done
    done
}

# Where the time of a step goes, and how near it is to what the machine can do.
anatomy() {
    adautomix anatomy-of-a-step bench --methods vanilla,adautomix --batch-size "$(pick 100 8)" --width "$(pick 1 0.125)" \
        --steps "$(pick 20 2)" --phases --work --rows "$ROWS"
}

# openmixup's steps beside ours, where it is installed; and mixing alone beside three libraries.
peers() {
    once peers-openmixup "$PYTHON" benchmarks/compare_openmixup.py batch_size="$(pick 100 8)" --methods vanilla,mixup,cutmix,adautomix \
        --steps "$(pick 20 2)" --rows "$ROWS" &&
        once peers-mixing "$PYTHON" benchmarks/mixing_alone.py --batch "$(pick 128 8)" --size "$(pick 224 32)" \
            --rounds "$(pick 30 2)" --rows "$ROWS"
}

# CIFAR-100, ResNet-18: as long a training as the time allows; called again it goes on.
train() {
    local method out data
    data=$(cifar100)
    for method in adautomix vanilla mixup; do
        out=$OUT/cifar100-$method-s0
        # A run that was interrupted ends with a failure of its own: what counts is its summary.
        if [ -e "$out/checkpoints/last" ]; then
            adautomix "train-$method" resume "$out"
        else
            rm -rf "$out"
            adautomix "train-$method" train --recipe "cifar100-r18/$method@200" --data "$data" --stem cifar --seed 0 \
                --epochs "$(pick 200 1)" --width "$(pick 1 0.125)" --per-class "$(pick 500 5)" --batch-size "$(pick 100 25)" \
                --runtime "${RUNTIME:-$(pick graph eager)}" --precision "$(pick bf16 fp32)" --checkpoint-every 5 --out "$out"
        fi || return 1
        if [ ! -e "$out/summary.json" ]; then return 1; fi
    done
}

# What can be committed: rows of the trainings, and one page of all runs.
page() {
    local runs
    runs=$(find "$OUT" -maxdepth 1 -name 'cifar100-*' -exec test -e '{}/metrics.jsonl' \; -print)
    # shellcheck disable=SC2086
    [ -z "$runs" ] || "$PYTHON" -m adautomix report $runs --out "$OUT/report.html" --rows "$OUT/cifar100.jsonl" --markdown
}

for name in ${@:-correctness precision steps anatomy peers train page}; do
    if [ -e "$OUT/done/$name" ]; then echo "$name: done before"; continue; fi
    STARTED=$SECONDS
    echo "== $name"
    if "$name" > >(tee -a "$OUT/logs/$name.log") 2>&1; then
        [ "$name" = page ] || touch "$OUT/done/$name"
        echo "== $name done in $((SECONDS - STARTED)) s"
    else
        echo "== $name not finished after $((SECONDS - STARTED)) s: call again to go on"
    fi
done
