#!/usr/bin/env bash
# Makes the shipped weights on simulated domains and half of B39 (CC0): meta-training and, beside it, plain joint
# training on the same images for the same number of steps; measures both; the better one is copied to the bundle by
# hand (joint training so far: see bundles/kwtl/docs/data_license.txt).
#   scripts/pretrain.sh [folder for everything, default output/pretrain] [meta-epochs, default 20]
# B39 is read from $KWTL_DATA (default ../shared/data).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null
. scripts/setup_env.sh
setup_env
out=${1:-output/pretrain}
epochs=${2:-20}
data=${KWTL_DATA:-../shared/data}
[ -d "$data/B39/images" ] || { echo "B39 is not in $data: set KWTL_DATA" >&2; exit 1; }
mkdir -p "$out/sources" "$out/unseen"

"$VENV_PYTHON" - "$out" "$data/B39" <<'PYTHON'
import os, sys
from pathlib import Path
from monai_kwtl.synthetic import DOMAINS
from monai_kwtl.data.sources import simulated_sources

out, b39 = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
sources = simulated_sources(out / "sources", count=12, seed=100, looks=2)
simulated_sources(out / "unseen", count=6, seed=900, looks=1)  # looks that no training sees
# every second image of B39, by name, is for training; the others are for measuring
for part, folder in ((0, out / "sources" / "B39"), (1, out / "unseen" / "B39")):
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for path in sorted((b39 / kind).iterdir())[part::2]:
            link = folder / kind / path.name
            if not link.exists():
                os.symlink(path, link)
# targets of other kinds: never trained on, and at most 40 images each
for name in ("ssTEM", "TNBC", "B5"):
    if (b39.parent / name / "labels").is_dir():
        files = sorted((b39.parent / name / "images").iterdir())
        for path in files[:: -(-len(files) // 40)]:
            for kind, file in (("images", path.name), ("labels", f"{path.stem}.png")):
                link = out / "unseen" / name / kind / file
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    os.symlink(b39.parent / name / kind / file, link)
# joint training sees the same images in one folder; of B39 as many as the other sources have
joint = out / "joint"
for folder in [*sources, out / "sources" / "B39"]:
    files = sorted((folder / "images").iterdir())
    for path in files if folder.name != "B39" else files[:: max(1, len(files) // 12)][:12]:
        for kind in ("images", "labels"):
            (joint / kind).mkdir(parents=True, exist_ok=True)
            source = folder / kind / (path.name if kind == "images" else f"{path.stem}.png")
            link = joint / kind / f"{folder.name}_{source.name}"
            if not link.exists():
                os.symlink(source.resolve(), link)
PYTHON

export PYTHONWARNINGS="${PYTHONWARNINGS:+$PYTHONWARNINGS,}ignore:parsing config_file:UserWarning"
run() { "$VENV_PYTHON" -m monai.bundle run "$@"; }
sources=$(printf '"%s", ' "$out"/sources/*)
steps=$((epochs * 30 * $(find "$out/sources" -mindepth 1 -maxdepth 1 | wc -l)))
common=(--crop 128 --seed 1 --resume true)
# both at once, each on half of the cores
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=$((cores > 1 ? cores / 2 : 1))
run --config_file bundles/kwtl/configs/meta_train.json --sources "[${sources%, }]" --output_dir "$out/reptile" \
    --meta_epochs "$epochs" --most_images 12 --checkpoint_every 2 "${common[@]}" &
run --config_file bundles/kwtl/configs/train.json --dataset_dir "$out/joint" --output_dir "$out/joint_weights" --ckpt random \
    --steps "$steps" --batch_size 5 --learning_rate 0.001 --held_out 0 --adapt_norm false "${common[@]}"
wait $!
unset OMP_NUM_THREADS

for weights in reptile joint_weights; do
    for target in "$out"/unseen/*; do
        run --config_file bundles/kwtl/configs/evaluate.json --dataset_dir "$target" --ckpt "$out/$weights/model.pt" \
            --output_dir "$out/evaluate/$weights/$(basename "$target")" --overwrite true --overlays false --tensorboard false
    done
done
"$VENV_PYTHON" - "$out/evaluate" <<'PYTHON'
import json, sys
from pathlib import Path
from monai_kwtl.utils.text import format_table

root = Path(sys.argv[1])
targets = sorted({path.parent.name for path in root.glob("*/*/evaluation.json")})
kinds = ("reptile", "joint_weights")
value = lambda kind, target: json.loads((root / kind / target / "evaluation.json").read_text())["summary"]["mean_iou"]
rows = [(target, *(f"{100 * value(kind, target):.1f}" for kind in kinds)) for target in targets]
print("\n".join(["mean IoU, %", *format_table(("target", *kinds), rows)]))
PYTHON
