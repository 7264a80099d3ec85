#!/usr/bin/env bash
# GPU day: everything that needs a GPU, in parts of at most ten minutes each. What a part finds is in OUT as soon as it is
# there; a training that is cut goes on from WORK when its part is called again.
#   DATA=train.npz TEST=test.npz OUT=results bash benchmarks/gpu.sh [PART ...]     default: all parts
#   DEVICE=cpu SIZE=quick ... bash benchmarks/gpu.sh                               every part, too small for figures
# DATA and TEST take whatever --data.path takes; PYTHON is the interpreter with the packages of pyproject.toml.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${PYTHON:=python3}" "${DATA:=cifar10}" "${TEST:=cifar10}" "${OUT:=runs/gpu}" "${WORK:=runs/gpu_work}"
: "${DEVICE:=cuda}" "${SIZE:=gpu}" "${SECONDS_A_PART:=570}"
mkdir -p "$OUT" "$WORK"

quick() { [ "$SIZE" = quick ]; }

# 1. Right on this device: refinement as on the CPU, attacks in bf16 and in a CUDA graph, training plain and compiled, FFCV's
# batches, nccl, memory.
tests() { $PYTHON -m pytest -m gpu tests/test_gpu.py | tee "$OUT/tests.txt"; }

# 2. Speed beside the peers; each row as soon as it is measured.
peers_train() { beside train; }
peers_refine() { beside refine; }
peers_pgd() { beside pgd; }
peers_fid() { beside fid; }
beside() { $PYTHON -m benchmarks.all --size "$SIZE" --only "$1" --json "$OUT/peers.jsonl" | tee -a "$OUT/peers.txt"; }

autoattack() {
	$PYTHON -m eval robust --ckpt cifar10-l2-small --data "$TEST" --eps 0.5 --attack autoattack --device "$DEVICE" \
		--limit "$(quick && echo 8 || echo 1000)" --json | tee "$OUT/autoattack.json"
}

# 3. Classifiers: the embedded ones' recipes, the fast recipe, and the record.
small() { trained small --config cifar_l2_small.yaml; }
base() { trained base --config cifar_l2_base.yaml; }
fast() { trained fast --config cifar_l2_fast.yaml; }

trained() { # NAME FLAGS: train, keep what is small, measure
	local name=$1
	shift
	$PYTHON -m train "$@" --data.path "$DATA" --device "$DEVICE" --out "$WORK/$name" --save-minutes 2 --json \
		$(quick && echo --epochs 1 --data.limit 64 --batch-size 32 --data.validation 8 --compile false) >"$OUT/$name.json"
	local status=$?
	cp "$WORK/$name/metrics.jsonl" "$OUT/$name.metrics.jsonl"
	[ $status = 0 ] || return $status
	find "$WORK/$name/classifier.safetensors" -size -12M -exec cp {} "$OUT/$name.safetensors" \;
	$PYTHON -m eval robust --ckpt "$WORK/$name/classifier.safetensors" --data "$TEST" --eps 0.5 --steps 20 --restarts 2 \
		--device "$DEVICE" $(quick && echo --limit 8) --json | tee "$OUT/$name.robust.json"
}

time_to_robust() { curve gpu; }
record() { curve record; }

curve() { # PRESET
	$PYTHON -m benchmarks.time_to_robust --data "$DATA" --test "$TEST" --device "$DEVICE" --out "$WORK/$1" --save-minutes 2 \
		$(quick && echo --config cifar_l2_small.yaml --epochs 1 --compile false --data.limit 64 --batch-size 32 \
			--data.validation 8 --test-images 8 --standard-images 8 || echo --preset "$1") | tee "$OUT/$1.txt"
	cp "$WORK/$1/curve.jsonl" "$OUT/$1.jsonl"
}

export -f quick beside peers_train peers_refine peers_pgd peers_fid tests autoattack trained small base fast
export -f curve time_to_robust record
export PYTHON DATA TEST OUT WORK DEVICE SIZE
failed=()
for name in ${*:-tests peers_train peers_refine peers_pgd peers_fid autoattack small base fast time_to_robust record}; do
	echo "== $name"
	timeout --kill-after=30 "$SECONDS_A_PART" bash -uo pipefail -c "trap : TERM; $name" || failed+=("$name ($?)")
done
[ ${#failed[@]} = 0 ] || { echo "cut or failed: ${failed[*]}" >&2; exit 1; }
