"""An import changes nothing but ``sys.modules``: what a program has set up for itself stays as it is."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# the modules of others first, because what they change is theirs; then a snapshot around the import of ours
PROGRAM = """
import importlib, json, logging, os, sys, threading, warnings
others, ours = json.loads(sys.argv[1])

def load(names):
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append([name, str(error.name)])
    return missing

def state():
    import matplotlib, torch
    loggers = {name: one for name, one in logging.root.manager.loggerDict.items() if isinstance(one, logging.Logger)}
    found = {
        f"logger {name}": [list(map(str, one.handlers)), list(map(str, one.filters)), one.level, one.disabled]
        for name, one in {**loggers, "root": logging.root}.items()
        if one.handlers or one.filters or one.level or one.disabled
    }
    return found | {
        "excepthook": repr(sys.excepthook),
        "excepthook of threads": repr(threading.excepthook),
        "all loggers": logging.root.manager.disable,
        "warnings": list(map(str, warnings.filters)),
        "showwarning": repr(warnings.showwarning),
        "rcParams": str(matplotlib.rcParams.copy()),
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
    }

load(others)
before = state()
missing = load(ours)
after = state()
from monai_kwtl.inferers.memory import freed_memory_is_kept
changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
print(json.dumps([changed + ["allocator"] * freed_memory_is_kept(), missing]))
"""


def _run(program: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _names() -> tuple[list[str], list[str]]:
    """Every module of others that ours import at their top, and every one of ours."""
    others: set[str] = {"matplotlib", "torch"}
    ours = []
    for path in sorted((ROOT / "monai_kwtl").rglob("*.py")):
        ours.append(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                others |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                others.add(str(node.module))
    return sorted(name for name in others if name.split(".")[0] not in ("monai_kwtl", "__future__")), ours


def test_no_module_has_a_statement_at_its_top_that_is_there_for_its_effect():
    found = []
    for path in (ROOT / "monai_kwtl").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            targets = node.targets if isinstance(node, ast.Assign) else []
            if call or any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in targets):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


@pytest.mark.slow  # it loads every library; test_no_module_has_a_statement_... is its short twin
def test_no_module_changes_anything_of_the_process_when_it_is_imported():
    others, ours = _names()
    changed, missing = json.loads(_run(PROGRAM, json.dumps([others, ours])).splitlines()[-1])
    assert not changed
    assert len(ours) > 100 and all(name.startswith("monai_kwtl.label.") for name, _ in missing), missing
    assert not any(needed.startswith("monai_kwtl") for _, needed in missing), missing


def test_the_package_itself_loads_neither_torch_nor_numpy_and_shows_its_names():
    program = "import sys, json, monai_kwtl; print(json.dumps([sorted(sys.modules), dir(monai_kwtl)]))"
    loaded, shown = json.loads(_run(program))
    assert not {"torch", "numpy", "monai", "matplotlib"} & set(loaded)
    assert {"FCRN", "Budget", "StageWorkflow", "select_regions", "tune", "selection", "transforms"} <= set(shown)
