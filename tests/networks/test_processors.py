"""What holds on one processor holds on others: numbers within a tolerance, and the same regions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from stage_here import random_weights, run

from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.networks.autocast import native_bfloat16
from monai_kwtl.networks.processors import instruction_set, onednn_isa
from monai_kwtl.synthetic import make_pool

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "monai_kwtl" / "project" / "selection.schema.json").read_text())

# an instruction set that the processor lacks is no error: oneDNN takes the best one that there is below it
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
OTHERS = {  # besides the machine's own, under which the suite itself runs
    "avx512_bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "avx2": AVX2,
    "aten_avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "all_avx2": {**AVX2, "ATEN_CPU_CAPABILITY": "avx2"},
}

# the tests of what oneDNN and ATen compute
NUMERIC = """
handlers/batch_norm handlers/selection_saver inferers/flips inferers/tiled networks/batch_norm_statistics networks/fcrn
networks/fused_relu networks/pooling report/tensorboard scoring/contrast scoring/features scoring/measures scoring/tiles
scoring/window_scores selection/select
""".split()
FILES = [f"tests/{name.replace('/', '/test_')}.py" for name in NUMERIC]

CHILD = """
import json, sys
import numpy as np, torch
from monai_kwtl.networks.weights import load_weights
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.selection.budget import Budget
from monai_kwtl.windows.scores import ImageScores
from monai_kwtl.selection.select import select_regions
from monai_kwtl.synthetic import make_pool
from monai_kwtl.data.pool import load_pool
from monai_kwtl.data.loading import read_image
from monai_kwtl.scoring.window_scores import WindowScoreInferer

folder, weights = sys.argv[1:]
make_pool(folder, "fluorescence", count=3, height=150, width=190, seed=4)
network = load_weights(FCRN(), weights, torch.device("cpu")).eval()
inferer = WindowScoreInferer(ScoreMapInferer(inferer=TiledInferer(amp=None)), 64, 32)
pool = []
for item in load_pool(folder, with_labels=False):
    found = inferer(torch.from_numpy(read_image(item))[None], network)
    pool.append(ImageScores(item["name"], None, item["sha256"], found["grid"], found["window_scores"], found["cells"]))
regions = {name: [(r.image, r.x, r.y) for r in select_regions(pool, name, Budget(windows=4))]
           for name in ("top_k", "coverage")}
by = inferer.scorer.inferer.arithmetic("cpu")
print(json.dumps({"by": by, "scores": np.concatenate([p.window_scores for p in pool]).tolist(), "regions": regions}))
"""


def limited(variables):
    """The environment with no limit but the given ones, and one thread."""
    own = {name: value for name, value in os.environ.items() if name not in LIMITS}
    path = os.pathsep.join(filter(None, [str(ROOT), own.get("PYTHONPATH")]))
    return own | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | variables


def score_in_a_process(folder, variables):
    weights = ROOT / "bundles" / "kwtl" / "models" / "model.pt"
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(weights)],
        env=limited(variables | {"ONEDNN_VERBOSE": "all"}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    # oneDNN says itself what it computes with
    said = re.search(r"info,cpu,isa:(.*)", ended.stdout)
    return json.loads(ended.stdout.splitlines()[-1]), "" if said is None else said[1]


SAID = {
    "AVX2": "Intel AVX2",
    "AVX512_CORE": "Intel AVX-512",
    "AVX512_CORE_BF16": "bfloat16 support",
    "AVX512_CORE_AMX": "Intel AMX",
}


def test_the_numeric_tests_are_there():
    assert not [file for file in FILES if not (ROOT / file).is_file()]


def test_another_instruction_set_gives_near_scores_and_the_same_regions(tmp_path):
    with ThreadPoolExecutor(2) as both:
        (own, own_said), (other, other_said) = both.map(
            score_in_a_process, (tmp_path / "own", tmp_path / "other"), ({}, AVX2)
        )
    for found, said in ((own, own_said), (other, other_said)):
        isa = found["by"]["instruction_set"].split(",")[0].removeprefix("oneDNN ")
        assert SAID.get(isa, "") in said
    if onednn_isa() in SAID:
        assert other["by"]["dtype"] == "float32" and other["by"]["instruction_set"].startswith("oneDNN AVX2, ")
    scores, others = np.array(own["scores"]), np.array(other["scores"])
    assert np.abs(others - scores).max() <= 0.01 * np.ptp(scores)
    assert other["regions"] == own["regions"]


@pytest.mark.slow
@pytest.mark.parametrize("variables", OTHERS.values(), ids=OTHERS)
def test_the_numeric_tests_pass_under_each_instruction_set(variables, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/t",
         *FILES],
        cwd=ROOT, env=limited(variables), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-6000:]
    assert int(re.search(r"(\d+) passed", ended.stdout)[1]) > 300
    left_out = [line for line in ended.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all("no real data" in line for line in left_out), left_out


def test_a_selection_says_what_computed_and_kept_scores_of_other_arithmetic_are_not_met(tmp_path, monkeypatch):
    make_pool(tmp_path / "pool", "fluorescence", count=2, height=70, width=90, seed=1)
    options = {"dataset_dir": tmp_path / "pool", "output_dir": tmp_path / "out", "pretext": "skip", "overwrite": "true"}
    options |= {"ckpt": random_weights(tmp_path / "model.pt"), "window": 40, "step": 20, "budget_windows": 2}
    options |= {"report": "false", "tensorboard": "false", "device": "cpu", "amp": "false", "tile": 96}

    def select(**other):
        ended = run("select", **options | other)
        assert ended.status == 0, ended.err
        text = (tmp_path / "out" / "selection.json").read_text()
        jsonschema.validate(json.loads(text), SCHEMA)
        return json.loads(text)["created_with"]["computed_by"], text, "scoring images" in ended.out

    by, first, scored = select()
    assert scored and by == {"dtype": "float32", "instruction_set": instruction_set("cpu"), "tile": 96}
    assert select() == (by, first, False)
    assert select(tile=64)[::2] == (by | {"tile": 64}, True)
    monkeypatch.setattr("monai_kwtl.inferers.tiled.instruction_set", lambda device: "another")
    assert select()[::2] == (by | {"instruction_set": "another"}, True)
    monkeypatch.undo()
    assert select() == (by, first, False)


@pytest.mark.parametrize(
    ("limit", "isa", "bfloat16"),
    [
        ("", "AVX512_CORE_AMX", True),
        ("nonsense", "AVX512_CORE_AMX", True),
        ("avx512_core_amx", "AVX512_CORE_AMX", True),
        ("AVX10_1_512", "AVX512_CORE_BF16", True),
        ("AVX512_CORE_BF16", "AVX512_CORE_BF16", True),
        ("AVX512_CORE_VNNI", "AVX512_CORE", False),
        ("AVX512_CORE", "AVX512_CORE", False),
        ("AVX2_VNNI", "AVX2", False),
        ("AVX", "SSE41", False),
    ],
)
def test_the_environment_limits_what_a_processor_with_everything_uses(monkeypatch, limit, isa, bfloat16):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name in ("avx2", "avx512", "avx512_bf16", "amx_tile"):
        monkeypatch.setattr(f"torch.cpu._is_{name}_supported", lambda: True)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        monkeypatch.setenv(name, limit)
        assert onednn_isa() == isa and native_bfloat16("cpu") == bfloat16


def test_a_limit_above_the_processor_is_what_the_processor_has(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    for name in ("avx512", "avx512_bf16", "amx_tile"):
        monkeypatch.setattr(f"torch.cpu._is_{name}_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_avx2_supported", lambda: True)
    assert onednn_isa() == "AVX2"
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert onednn_isa() == "aarch64" and not native_bfloat16("cpu")


def test_a_note_says_what_computes(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    assert TiledInferer(tile=96, amp=True).arithmetic("cpu") == {
        "dtype": "bfloat16",
        "instruction_set": instruction_set("cpu"),
        "tile": 96,
    }
    assert TiledInferer(amp=None).arithmetic("cuda") == {
        "dtype": "float32",
        "instruction_set": "Some GPU",
        "tile": 1536,
    }
    assert instruction_set("meta") == "meta"
