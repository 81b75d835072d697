"""Write pools of simulated images to a folder, whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from monai_kwtl.errors import KWTLError
from monai_kwtl.synthetic.looks import Look, check_domain, draw_look, vary_look
from monai_kwtl.synthetic.simulation import side, simulate, whole

__all__ = ["make_demo_pool", "make_pool"]

_FORMAT = "kwtl-synthetic/1"  # raise the number when the same seed gives other pictures
_RECIPE = "recipe.json"

Plan = list[tuple[Look, float]]


def make_pool(
    folder: str | os.PathLike[str],
    kind: str = "fluorescence",
    count: int = 16,
    height: int = 512,
    width: int = 640,
    seed: int = 0,
) -> list[Path]:
    """Write a pool of simulated images of one specimen, of mixed difficulty, with masks.

    Writes ``images/<kind>_00.png``, ``labels/<kind>_00.png`` and ``recipe.json`` to a temporary folder beside
    ``folder`` and renames it at the end: an interrupted run leaves no half pool. Does nothing where the pool is already
    there. Pools of different seeds differ in cell size, contrast, density and so on; within one pool difficulties
    spread over [0, 1] and some images are nearly empty.

    Args:
        folder: where to write; must not exist, be empty, or hold the complete pool of these arguments.
        kind: one of ``DOMAINS``.
        count: number of images.
        height: rows of each image.
        width: columns of each image.
        seed: seed of everything.

    Returns:
        Paths of the images, in order.

    Raises:
        KWTLError: an argument out of range, a folder that holds anything else, or one that cannot be written.
    """
    check_domain(kind)

    def plan(count: int, rng: np.random.Generator) -> Plan:
        look = draw_look(kind, rng)
        return [(vary_look(look, rng), float(d)) for d in rng.permutation(np.linspace(0, 1, count))]

    return _make(Path(folder), {"recipe": "mixed", "kind": kind}, plan, count, height, width, seed)


def make_demo_pool(folder: str | os.PathLike[str]) -> list[Path]:
    """Write the pool that the bundle works on when it is given none: 16 images of stained nuclei, 512 x 640.

    Four sparse and clear fields, four ordinary ones, three with dense clumps, three with debris and lint, one blurred
    and faint, one nearly empty; shuffled. Most are much alike and a few are not, so that it matters which are labelled.

    Args:
        folder: where to write, as ``make_pool``.

    Returns:
        Paths of the images, in order.

    Raises:
        KWTLError: the folder holds anything else, or cannot be written.
    """

    def plan(count: int, rng: np.random.Generator) -> Plan:
        base = Look(radius=13.0, coverage=0.11, clustering=0.25, contrast=0.4, clutter=0.6)
        fields = [
            *[(replace(base, coverage=c, clustering=0.1, clutter=0.3), 0.05) for c in (0.06, 0.08, 0.1, 0.12)],
            *[(replace(base, coverage=c), 0.3) for c in (0.09, 0.12, 0.15, 0.18)],
            *[
                (replace(base, coverage=c, clustering=0.9, radius=r), 0.5)
                for c, r in ((0.22, 12), (0.3, 11), (0.26, 14))
            ],
            *[(replace(base, clutter=c), 0.6) for c in (1.8, 2.4, 3.0)],
            (base, 0.95),
            (replace(base, coverage=0.006), 0.4),
        ]
        return [fields[i] for i in rng.permutation(count)]

    return _make(Path(folder), {"recipe": "demo", "kind": "fluorescence"}, plan, 16, 512, 640, 0)


def _make(
    folder: Path,
    request: dict[str, Any],
    plan: Callable[[int, np.random.Generator], Plan],
    count: int,
    height: int,
    width: int,
    seed: int,
) -> list[Path]:
    request = {
        "format": _FORMAT,
        **request,
        "count": whole("count", count, 1, 9999),
        "height": side("height", height),
        "width": side("width", width),
        "seed": whole("seed", seed, 0, 2**64 - 1),
    }
    digits = max(2, len(str(request["count"] - 1)))
    names = [f"{request['kind']}_{i:0{digits}d}.png" for i in range(request["count"])]
    paths = [folder / "images" / name for name in names]
    if _is_complete(folder, request, names):
        return paths
    try:
        target = folder.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            draft = Path(scratch, "pool")  # TemporaryDirectory is private to its owner, a folder made in it is not
            _write(draft, request, names, plan)
            if not _is_complete(folder, request, names):  # another process may have been quicker
                if target.is_dir():
                    target.rmdir()  # it was empty a moment ago
                draft.rename(target)
    except OSError as error:
        # two processes may make the same pool at once: the loser finds the winner's
        if _is_complete(folder, request, names):
            return paths
        raise KWTLError(
            f"cannot write the simulated pool to {folder}: {error.strerror or error}; name another folder"
        ) from error
    return paths


def _write(
    draft: Path, request: dict[str, Any], names: list[str], plan: Callable[[int, np.random.Generator], Plan]
) -> None:
    planner, *seeds = np.random.SeedSequence(request["seed"]).spawn(1 + len(names))
    for sub in ("images", "labels"):
        (draft / sub).mkdir(parents=True)
    made = []
    looks = plan(len(names), np.random.default_rng(planner))
    for name, (look, difficulty), seed in zip(names, looks, seeds, strict=True):
        image, mask = simulate(
            request["kind"],
            request["height"],
            request["width"],
            np.random.default_rng(seed),
            difficulty,
            look=look,
        )
        Image.fromarray(image).save(draft / "images" / name)
        Image.fromarray(mask).save(draft / "labels" / name)
        fraction = round(float(mask.mean()) / 255, 6)
        made.append({"name": name, "difficulty": round(difficulty, 4), "foreground": fraction, "look": asdict(look)})
    text = json.dumps({"request": request, "images": made}, indent=1)
    (draft / _RECIPE).write_text(text + "\n", encoding="utf-8")


def _is_complete(folder: Path, request: dict[str, Any], names: list[str]) -> bool:
    """Tell a folder with the wanted pool from one that can be written; raise for any other.

    Raises:
        KWTLError: the folder is a file, cannot be read, or holds anything else.
    """
    try:
        if folder.is_file():
            raise KWTLError(f"{folder} is a file: name another folder for the simulated pool")
        if not folder.exists() or not any(folder.iterdir()):
            return False
        recipe = folder / _RECIPE
        text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""
    except OSError as error:
        raise KWTLError(
            f"cannot read {folder}: {error.strerror}; name another folder for the simulated pool"
        ) from error
    try:
        found = json.loads(text)["request"]
        ours = found["format"].startswith("kwtl-synthetic/")
    except (ValueError, KeyError, TypeError, AttributeError):
        ours = False
    if not ours:
        raise KWTLError(f"{folder} is not empty and holds no simulated pool: name another folder")
    if found != request:
        raise KWTLError(f"{folder} holds another simulated pool: name another folder, or remove it")
    missing = [f"{sub}/{name}" for sub in ("images", "labels") for name in names if not (folder / sub / name).is_file()]
    if missing:
        raise KWTLError(f"{folder} is a simulated pool without {missing[0]}: remove the folder to make it anew")
    return True
