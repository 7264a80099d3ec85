#!/usr/bin/env bash
# Other people's packages that tests compare with: bash tests/oracles/install.sh [PYTHON]
# Each goes into a folder of its own without its dependencies: they would replace torch, and only a few are imported.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-.venv/bin/python}

into() {
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target ".venv/oracles/$1" "${@:2}"
}

into robustness robustness==1.2.1.post2 cox==0.2 dill==0.4.1 tensorboardX==2.6.5 pandas python-dateutil six
into robustbench robustbench==1.1.1
into open_clip open_clip_torch==3.3.0 ftfy wcwidth
