#!/usr/bin/env bash
# Ranks the regions of a small made-up pool that an expert should outline first, and says where the picture is.
# Further arguments go to the selection: ./scripts/demo.sh --dataset_dir my_images --budget 3 --output_dir my_selection
set -euo pipefail
here=$PWD
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null
root=$PWD
. scripts/setup_env.sh
setup_env

# Back to where the caller stands, so that relative paths in the arguments mean what they say.
cd -- "$here"
bundle="$root/bundles/kwtl"
output="$root/output/demo"
if [ "$here" = "$root" ]; then
    bundle=bundles/kwtl
    output=output/demo
fi
arguments=(--config_file "$bundle/configs/select.json" --bundle_root "$bundle")
chosen=
previous=
for argument in "$@"; do
    case $argument in --output_dir=*) chosen=${argument#*=} ;; esac
    [ "$previous" != --output_dir ] || chosen=$argument
    previous=$argument
done
# The demo's own folder is replaced at each run; a folder of the user's never without --overwrite true.
if [ -n "$chosen" ]; then
    output=$chosen
else
    arguments+=(--output_dir "$output" --overwrite true)
fi

# MONAI warns at each run that a config can run code. This one is ours; every other warning still shows.
export PYTHONWARNINGS="${PYTHONWARNINGS:+$PYTHONWARNINGS,}ignore:parsing config_file:UserWarning"
"$root/$VENV_PYTHON" -m monai.bundle run "${arguments[@]}" "$@"

printf '\nWhat to label: %s\nReport:        %s\n' "$output/what_to_label.png" "$output/report.html"
