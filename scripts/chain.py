"""The stages one after the other on a labelled data set, each a process of its own; ``scripts/chain.sh`` calls it."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from monai_kwtl.benchmark.experiments.annotator import write_region_masks
from monai_kwtl.bundle.failures import install_error_hook
from monai_kwtl.data.folders import find_images
from monai_kwtl.data.pool import load_pool
from monai_kwtl.data.splits import split_pool_test
from monai_kwtl.errors import KWTLError
from monai_kwtl.utils.text import format_seconds, format_table

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "bundles" / "kwtl" / "configs"


def link(items: list[dict], folder: Path) -> None:
    """Make a data set of links to images and labels."""
    for item in items:
        for kind, key in (("images", "image"), ("labels", "label")):
            source = Path(item[key]).resolve()
            (folder / kind).mkdir(parents=True, exist_ok=True)
            target = folder / kind / source.name
            if not target.is_symlink():
                os.symlink(source, target)


class Chain:
    """Runs stages, and remembers what each cost."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.rows: list[tuple[str, str, str, str]] = []

    def run(self, config: str, output: Path, **stage_options: object) -> float:
        """Run one stage in a process of its own; returns its seconds."""
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(CONFIGS / f"{config}.json")]
        for name, value in {**stage_options, "output_dir": output, "bundle_root": CONFIGS.parent}.items():
            command += [f"--{name}", str(value)]
        start = time.perf_counter()
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise KWTLError(f"the stage {config} failed; see above.")
        return time.perf_counter() - start

    def measure(self, stage: str, weights: Path, test: Path, norm: Path, seconds: float) -> dict[str, float]:
        """Evaluate weights on the test set and note the row of the closing table."""
        output = self.output / "evaluate" / stage
        self.run("evaluate", output, dataset_dir=test, norm_dir=norm, ckpt=weights, overwrite=True, tensorboard=False)
        summary = json.loads((output / "evaluation.json").read_text())["summary"]
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        scores = f"{100 * summary['mean_iou']:.1f}", f"{100 * summary['pooled_iou']:.1f}"
        self.rows.append((stage, *scores, format_seconds(seconds), f"{peak:.1f} GiB"))
        return summary


def main() -> None:
    """Run the chain and print its table."""
    install_error_hook()
    data = Path(os.environ.get("KWTL_DATA", ROOT.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="name of a data set below KWTL_DATA, such as ssTEM")
    parser.add_argument("--shots", type=float, default=3)
    parser.add_argument("--pixels", type=int, default=None, help="budget in distinct pixels instead of shots")
    parser.add_argument("--strategy", default="balanced")
    parser.add_argument("--measure", default="soft")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=500, help="of the support tuning")
    parser.add_argument("--pretext_steps", type=int, default=400)
    parser.add_argument("--sources", nargs="*", default=None, help="data sets to meta-train on; default: all others")
    parser.add_argument("--meta_epochs", type=int, default=15, help="0 begins with the weights of --ckpt as they are")
    parser.add_argument("--ckpt", type=Path, default=ROOT / "bundles" / "kwtl" / "models" / "model.pt")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()

    source = data / options.target
    overlay = json.loads((ROOT / "configs" / f"{options.target.lower()}.json").read_text())
    output = (options.output or ROOT / "output" / "chain" / options.target).resolve()
    pool, test = split_pool_test(load_pool(source), test_fraction=0.2, seed=options.seed)
    for part, items in (("pool", pool), ("test", test)):
        link(items, output / part)
    # the pool that the stages see has no labels at all
    bare = output / "unlabelled"
    bare.mkdir(parents=True, exist_ok=True)
    for item in pool:
        target = bare / Path(item["image"]).name
        if not target.is_symlink():
            os.symlink(Path(item["image"]).resolve(), target)

    chain = Chain(output)
    pseudo = {name: overlay[name] for name in ("threshold", "fraction", "polarity") if name in overlay}
    chain.measure("shipped weights", options.ckpt, output / "test", bare, 0.0)
    start = options.ckpt
    if options.meta_epochs:
        names = options.sources or [d.name for d in sorted(data.iterdir()) if (d / "labels").is_dir() and d != source]
        meta = output / "meta_train"
        seconds = chain.run(
            "meta_train", meta, sources=[str((data / name).resolve()) for name in names], ckpt=options.ckpt,
            meta_epochs=options.meta_epochs, crop=128, most_images=40, seed=options.seed, resume=True, overwrite=True,
        )  # fmt: skip
        start = meta / "model.pt"
        chain.measure(f"meta-training on {', '.join(names)}", start, output / "test", bare, seconds)
    pretext = output / "pretext"
    seconds = chain.run(
        "pretext", pretext, dataset_dir=bare, ckpt=start, steps=options.pretext_steps, seed=options.seed,
        resume=True, overwrite=True, **pseudo,
    )  # fmt: skip
    chain.measure("pretext", pretext / "model.pt", output / "test", bare, seconds)
    name = f"{options.strategy}_{options.measure}_{options.pixels or options.shots}"
    selected = output / name / "select"
    budget = {"budget_pixels": options.pixels} if options.pixels else {"budget": options.shots}
    stage_options = {name: overlay[name] for name in ("psi", "step") if name in overlay}
    seconds = chain.run(
        "select", selected, dataset_dir=bare, pretext=pretext / "model.pt", strategy=options.strategy,
        measure=options.measure, seed=options.seed, overwrite=True, **budget, **stage_options,
    )  # fmt: skip
    masks = output / name / "masks"
    labels = {Path(item["image"]).name: item["label"] for item in pool}
    items = [{**item, "label": labels[Path(item["image"]).name]} for item in find_images(bare)]
    count = write_region_masks(selected / "selection.json", items, masks)
    cost = json.loads((selected / "selection.json").read_text())["cost"]
    tuned = output / name / "train"
    training = chain.run(
        "train", tuned, dataset_dir=bare, labels=masks, selection=selected / "selection.json",
        ckpt=pretext / "model.pt", steps=options.steps, seed=options.seed, overwrite=True,
    )  # fmt: skip
    chain.measure(f"select {count} regions, train", tuned / "model.pt", output / "test", bare, seconds + training)
    print(f"\n{options.target}, {len(pool)} pool and {len(test)} test images, seed {options.seed}, {options.strategy}:")
    print(f"cost: {cost}")
    header = ("stage", "mean IoU %", "pooled IoU %", "time of stage", "peak memory so far")
    print("\n".join(format_table(header, chain.rows)))


if __name__ == "__main__":
    main()
