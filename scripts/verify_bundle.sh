#!/usr/bin/env bash
# Checks bundles/kwtl as the MONAI model zoo would, without the network; exit status 1 when a check fails.
#   scripts/verify_bundle.sh [BUNDLE] [--without-train]
set -euo pipefail
here=$PWD
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null
root=$PWD
. scripts/setup_env.sh
setup_env test
cd -- "$here"
exec "$root/$VENV_PYTHON" "$root/scripts/verify_bundle.py" "$@"
