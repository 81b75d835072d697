#!/usr/bin/env bash
# The whole way on a labelled data set, with its true masks as a simulated annotator:
# meta-training on the other data sets, pretext, select, masks of the selected regions, train, evaluate on a held-out fifth; IoU after each stage.
#   scripts/chain.sh ssTEM|TNBC|B39|B5 [--shots 3] [--strategy balanced] [--seed 0] [--output DIR] ...
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null
. scripts/setup_env.sh
setup_env
export PYTHONWARNINGS="${PYTHONWARNINGS:+$PYTHONWARNINGS,}ignore:parsing config_file:UserWarning"
exec "$VENV_PYTHON" scripts/chain.py "$@"
