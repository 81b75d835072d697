#!/usr/bin/env bash
# Makes .venv-label, an environment of its own for the MONAI Label server with monai_kwtl in it, and keeps it up to date.
#   scripts/label_setup.sh          what the server needs
#   scripts/label_setup.sh test     the tools of its tests as well
# Then: .venv-label/bin/kwtl label start --studies my_images
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null
. scripts/setup_env.sh
VENV=.venv-label
VENV_PYTHON=$VENV/bin/python
VENV_SIZE="about 4 GB"
VENV_FILES="setup.cfg setup.py pyproject.toml constraints.txt label-constraints.txt label-requirements.txt scripts/label_setup.sh"

install_packages() {
    local pip=("$VENV_PYTHON" -m pip install --no-input --disable-pip-version-check --no-user --progress-bar off)
    "${pip[@]}" -c constraints.txt -c label-constraints.txt -r label-requirements.txt -e ".${1:+[label-$1]}" &&
        "${pip[@]}" --no-deps -c label-constraints.txt monailabel &&
        stand_in
}

# MONAI Label imports pydicom_seg when it starts, for DICOM only; no release of that works with pydicom 3. The stand-in
# lies in the environment, because scoring and training run in processes of their own.
stand_in() {
    local folder
    folder=$("$VENV_PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
        printf '"""Stands in for pydicom-seg, which MONAI Label imports but does not use for microscopy images."""\n' \
            >"$folder/pydicom_seg.py"
}

setup_env "$@"
"$VENV_PYTHON" -c 'import sys; sys.exit(sys.version_info >= (3, 13))' ||
    printf 'note: MONAI Label is tested on Python 3.10 and 3.11; see kwtl label doctor\n' >&2
