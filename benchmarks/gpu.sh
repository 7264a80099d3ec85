#!/usr/bin/env bash
# Everything that needs a GPU, step by step: correctness, the small recipe with its scores, speed, time to robust accuracy.
#   DATA=train.npz TEST=test.npz OUT=runs/gpu bash benchmarks/gpu.sh [tests small refine step time_to_robust]
# DATA and TEST take whatever --data.path takes; PYTHON is the interpreter with the packages of pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PYTHON:=python3}" "${DATA:=cifar10}" "${TEST:=cifar10}" "${OUT:=runs/gpu}"
mkdir -p "$OUT"

tests() { $PYTHON -m pytest -m gpu tests/test_gpu.py; }

small() {
	$PYTHON -m train --config cifar_l2_small.yaml --data.path "$DATA" --device cuda --out "$OUT/small" --json |
		tee "$OUT/train.json"
	$PYTHON -m eval robust --ckpt "$OUT/small/classifier.safetensors" --data "$TEST" \
		--eps 0.5 --steps 20 --restarts 2 --device cuda --json | tee "$OUT/robust.json"
}

refine() {
	$PYTHON -m benchmarks.refine --device cuda --num-images 16384 --batch-size 2048 | tee "$OUT/refine.txt"
	$PYTHON -m benchmarks.refine --device cuda --network resnet50 --num-images 2048 --batch-size 512 |
		tee "$OUT/refine_resnet50.txt"
}

step() {
	$PYTHON -m benchmarks.train_step --device cuda --arch resnet50 --batch-size 256 --compile --steps 5 \
		--ways ours,plain | tee "$OUT/train_step.txt"
}

time_to_robust() {
	$PYTHON -m benchmarks.time_to_robust --data "$DATA" --test "$TEST" --device cuda --out "$OUT/time_to_robust" \
		--epochs "${EPOCHS:-10,30}" --seeds "${SEEDS:-0}" | tee "$OUT/time_to_robust.txt"
}

for name in ${*:-tests small refine step time_to_robust}; do "$name"; done
