#!/usr/bin/env bash
# Everything that needs a GPU, in one command: correctness, the small recipe with its scores, refinement speed.
#   DATA=train.npz TEST=test.npz OUT=runs/gpu bash benchmarks/gpu.sh
# DATA and TEST take whatever --data.path takes; PYTHON is the interpreter with the packages of pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PYTHON:=python3}" "${DATA:=cifar10}" "${TEST:=cifar10}" "${OUT:=runs/gpu}"
mkdir -p "$OUT"

$PYTHON -m pytest -m gpu tests/test_gpu.py
$PYTHON -m train --config cifar_l2_small.yaml --data.path "$DATA" --device cuda --out "$OUT/small" --json |
	tee "$OUT/train.json"
$PYTHON -m eval robust --ckpt "$OUT/small/classifier.safetensors" --data "$TEST" \
	--eps 0.5 --steps 20 --restarts 2 --device cuda --json | tee "$OUT/robust.json"
$PYTHON -m benchmarks.refine --device cuda --num-images 16384 --batch-size 2048 | tee "$OUT/refine.txt"
