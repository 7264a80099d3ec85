#!/usr/bin/env bash
# The packages that tests compare image scores with: bash tests/oracles/install_quality.sh [PYTHON]
# Without their dependencies, into a folder of their own; torch-fidelity and torchmetrics come with the dev extra.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-.venv/bin/python}
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/oracles/quality \
    pytorch-fid==0.3.0 clean-fid==0.1.35 prdc==0.2 vendi-score==0.0.3 \
    scikit-learn joblib threadpoolctl narwhals cloudpickle loky
