"""The floors of the house: which package may import which, how large a folder is, what each package says of itself."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "monai_kwtl"

# a package or module may import those of lower floors only
FLOORS = {
    1: ["errors", "metrics"],
    2: ["utils", "readers", "transforms", "windows", "synthetic"],
    3: ["networks", "losses", "selection", "data"],
    4: ["inferers", "project"],
    5: ["scoring", "bundle"],
    6: ["report"],
    7: ["handlers"],
    8: ["engines"],
    9: ["pipeline"],
    10: ["exchange", "benchmark"],
    11: ["label"],
    12: ["cli"],
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
IMPORTED_BY_NOTHING = {"benchmark", "cli"}
WITHOUT_TORCH = ["selection", "windows"]
MOST_MODULES = 10

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(HOUSE.rglob("*.py"))
}
PACKAGES = sorted(name for name, path in MODULES.items() if path.name == "__init__.py")


def _package(module: str) -> str:
    """Name of the package, or of the module beside the packages, that a module belongs to; empty for the root."""
    return module.split(".")[1] if "." in module else ""


def _imports(name: str, body: ast.AST, within_functions: bool = True) -> set[str]:
    """Names of the modules that a module imports; of ours, the modules themselves where only names are imported."""
    found: set[str] = set()
    queue = [body]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively in line {node.lineno}"
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {target for target in named if target in MODULES}
            if len(found & named) < len(named):
                found.add(str(node.module))
        elif within_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            queue += ast.iter_child_nodes(node)
    return found


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
IMPORTS = {name: _imports(name, tree) for name, tree in TREES.items()}


def test_every_package_has_a_floor():
    assert {_package(name) for name in MODULES} - {""} <= FLOOR.keys()


def test_imports_point_downwards():
    upwards = [
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        for target in sorted(targets & MODULES.keys())
        if _package(name) and _package(target) not in ("", _package(name))
        if FLOOR[_package(target)] >= FLOOR[_package(name)]
    ]
    assert not upwards, "\n".join(upwards)


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: _imports(name, tree, within_functions=False) & MODULES.keys() for name, tree in TREES.items()}
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    assert not graph, f"these import each other: {', '.join(sorted(graph))}"


def test_nothing_imports_the_benchmark_or_the_command_line():
    for name, targets in IMPORTS.items():
        others = {_package(target) for target in targets & MODULES.keys()} - {_package(name)}
        assert not others & IMPORTED_BY_NOTHING, name


def test_only_label_imports_monailabel():
    for name, targets in IMPORTS.items():
        if _package(name) != "label":
            assert not {target for target in targets if target.split(".")[0] == "monailabel"}, name


def test_utils_know_nothing_of_ours_but_errors():
    for name, targets in IMPORTS.items():
        if _package(name) == "utils":
            assert {_package(target) for target in targets & MODULES.keys()} <= {"utils", "errors"}, name


@pytest.mark.parametrize("modules", [["monai_kwtl"], *([f"monai_kwtl.{name}"] for name in WITHOUT_TORCH)])
def test_what_is_light_imports_no_torch(modules: list[str]):
    if modules != ["monai_kwtl"]:
        modules = [name for name in MODULES if name.startswith(modules[0])]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"{modules} import torch"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_small_and_says_in_one_sentence_what_it_is_for(package: str):
    doc = ast.get_docstring(TREES[package])
    assert doc and "\n" not in doc and doc.endswith(".") and not re.search(r"[.!?] [A-Z]", doc), doc
    if package != "monai_kwtl":
        modules = [path for path in MODULES[package].parent.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES, f"{package} has {len(modules)} modules"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_lists_its_modules_and_names_and_they_are_there(package: str):
    module = importlib.import_module(package)
    inside = {name.rpartition(".")[2] for name in MODULES if name.rpartition(".")[0] == package}
    assert inside - {"benchmark"} <= set(module.__all__)  # which is not installed
    if _package(package) != "label":  # which needs an environment of its own
        for name in module.__all__:
            assert getattr(module, name) is not None, name


# --- the map ----------------------------------------------------------------------------------------------------------

PAGES = [ROOT / "docs/architecture.md", ROOT / "CONTRIBUTING.md"]
LINE_LINK = re.compile(r"\[`([^`]+)`\]\(([^)#\s]+)#L(\d+)\)")
RENEW = "run: python scripts/architecture.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_lines_point_at_what_they_name(page: Path):
    links = LINE_LINK.findall(page.read_text(encoding="utf-8"))
    assert len(links) > 10
    for name, target, line in links:
        path = (page.parent / target).resolve()
        assert path.is_file(), f"{page.name}: there is no {target}"
        lines = path.read_text(encoding="utf-8").splitlines()
        last = re.escape(re.split(r"[.#]", name)[-1])
        defined = rf'\s*((class|def) {last}\b|{last}(: .+)? = |"{last}":)'
        assert int(line) <= len(lines) and re.match(defined, lines[int(line) - 1]), f"{page.name}: {name}; {RENEW}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_other_links_of_the_map_lead_somewhere(page: Path):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert (page.parent / target).exists(), f"{page.name}: there is no {target}"


def test_the_picture_shows_the_floors_one_above_the_other():
    svg = "{http://www.w3.org/2000/svg}"
    shown, heights = {}, {}
    for floor in ElementTree.parse(ROOT / "docs/architecture.svg").getroot().iter(f"{svg}g"):
        number = int(floor.attrib["id"].removeprefix("floor-"))
        shown[number] = [text.text for text in floor.iter(f"{svg}text") if text.get("font-weight") == "bold"]
        heights[number] = float(next(floor.iter(f"{svg}rect")).attrib["y"])
    assert shown == FLOORS, RENEW
    assert sorted(heights, key=heights.__getitem__, reverse=True) == sorted(FLOORS)


def test_the_table_of_packages_says_what_they_say_of_themselves():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGES[1].read_text(encoding="utf-8"), re.MULTILINE)
    said = {name: (ast.get_docstring(TREES[f"monai_kwtl.{name}"]) or "").splitlines()[0] for name in FLOOR}
    assert dict(rows) == said, RENEW
    picture = ElementTree.parse(ROOT / "docs/architecture.svg").getroot()
    words = " ".join(" ".join(picture.itertext()).split())
    for name, sentence in said.items():
        assert sentence.replace("`", "") in words, f"{name}; {RENEW}"
