"""Draw the floors; renew the lines of links and the sentences of packages in docs/architecture.md, CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
import sys
from html import escape
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs/architecture.svg"
PAGES = (ROOT / "docs/architecture.md", ROOT / "CONTRIBUTING.md")

# [`name`](path#L12): a definition of a Python file, with its class before a dot; or an id of a config, with # between
LINK = re.compile(r"\[`(?P<name>[^`]+)`\]\((?P<path>[^)#\s]+)#L(?P<line>\d+)\)")
ROW = re.compile(r"^\| `(?P<package>\w+)` \| .* \|$", re.MULTILINE)

_WIDTH, _GAP, _LEFT = 1080, 6, 44  # of the picture, between boxes, and left of them, in pixels
_LINE, _LETTER = 14, 6.1  # height of a line of small text and mean width of its letters
_COLOURS = ("#eef3f8", "#e3ecf5")


def read_floors() -> dict[int, list[str]]:
    """Read the packages on each floor from the test that holds their order."""
    tree = ast.parse((ROOT / "tests/test_architecture.py").read_text(encoding="utf-8"))
    tables = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "FLOORS"]
    return ast.literal_eval(tables[0])


def sentence_of(package: str) -> str:
    """Return what a package, or a module beside the packages, says it is for."""
    folder = ROOT / "monai_kwtl" / package
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


def draw(floors: dict[int, list[str]]) -> str:
    """Draw the floors, the first at the bottom, as SVG; each package is a box with its sentence."""
    body, top = [], _GAP
    for floor in sorted(floors, reverse=True):
        width = (_WIDTH - _LEFT) / len(floors[floor])
        letters = int((width - 24) / _LETTER)
        texts = [wrap(sentence_of(package).replace("`", ""), letters) for package in floors[floor]]
        height = 30 + _LINE * max(map(len, texts))
        middle = top + height // 2 + 6
        body += [f'<g id="floor-{floor}">', f'<text x="12" y="{middle}" font-size="16" fill="#667">{floor}</text>']
        for number, (package, lines) in enumerate(zip(floors[floor], texts, strict=True)):
            left = _LEFT + number * width
            body += [
                f'<rect x="{left:.0f}" y="{top}" width="{width - _GAP:.0f}" height="{height}" rx="4" '
                f'fill="{_COLOURS[floor % 2]}" stroke="#9ab"/>',
                f'<text x="{left + 9:.0f}" y="{top + 19}" font-size="14" font-weight="bold">{package}</text>',
            ]
            for place, line in enumerate(lines):
                y = top + 36 + place * _LINE
                body.append(f'<text x="{left + 9:.0f}" y="{y}" font-size="12" fill="#334">{escape(line)}</text>')
        body.append("</g>")
        top += height + _GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}" '
            'font-family="Helvetica, Arial, sans-serif">',
            "<title>The floors of monai_kwtl: a package imports from lower floors only</title>",
            f'<rect width="{_WIDTH}" height="{top}" fill="white"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def line_of(path: Path, name: str) -> int | None:
    """Find the line of a definition.

    Args:
        path: of a Python file, or of a config.
        name: ``function``, ``Class.method`` or a constant; of a config an id such as ``train#trainer``.

    Returns:
        The line, from 1; None where it is not there.
    """
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    start, config = 0, path.suffix == ".json"
    for depth, part in enumerate(name.split("#" if config else ".")):
        word, indent = re.escape(part), " " * 4 * (depth + config)
        begin = re.compile(f'{indent}"{word}":' if config else rf"{indent}((class|def) {word}\b|{word}(: .+)? = )")
        found = [number for number in range(start, len(lines)) if begin.match(lines[number])]
        if not found:
            return None
        start = found[0]
    return start + 1


def renew(page: Path) -> list[str]:
    """Write the present line of each link of a page, and the present sentence of each package.

    Returns:
        The links that lead nowhere, which stay as they are.
    """
    lost = []

    def link(match: re.Match[str]) -> str:
        line = line_of((page.parent / match["path"]).resolve(), match["name"])
        if line is None:
            lost.append(f"{page.name}: {match['path']} does not define {match['name']}; change the link")
            return match[0]
        return f"[`{match['name']}`]({match['path']}#L{line})"

    text = LINK.sub(link, page.read_text(encoding="utf-8"))
    text = ROW.sub(lambda match: f"| `{match['package']}` | {sentence_of(match['package'])} |", text)
    page.write_text(text, encoding="utf-8")
    return lost


def main() -> str | None:
    """Write the picture and the pages; return the links that lead nowhere, a line each, or None."""
    PICTURE.write_text(draw(read_floors()), encoding="utf-8")
    return "\n".join(sum(map(renew, PAGES), [])) or None


if __name__ == "__main__":
    sys.exit(main())
