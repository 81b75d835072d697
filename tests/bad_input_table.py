"""Prints docs/bad-input.md, a table of the cases that test_bad_input.py runs."""

from __future__ import annotations

from bad_input.cases import ALL
from bad_input.images import IMAGES
from bad_input.masks import MASKS, REGIONS
from bad_input.settings import OUTPUT, SELECTING, WEIGHTS
from bad_input.training import META_TRAINING, TUNING

SECTIONS = {
    "Images": IMAGES,
    "What to select": SELECTING,
    "Weights, device and other settings": WEIGHTS,
    "Output": OUTPUT,
    "Masks": MASKS,
    "Selections and masks of regions": REGIONS,
    "Pseudo-labels and training": TUNING,
    "Meta-training": META_TRAINING,
}

_HEAD = """# What is said to bad input

Every stage answers bad input with one line on stderr, `error: ` and what is wrong, where, and what to do, and ends with
exit status 1. Nothing of yours is changed, and no result is written. Where a run goes on, exit status 0, what is odd is
said among its other lines. With `KWTL_TRACEBACK=1` in the environment, an error shows where in the code it came up.

In the examples the images lie in `my_images/images`, three of them, 60 pixels wide and 48 high, their masks in
`my_images/labels`, the weights in `weights.pt`; windows are 32 pixels wide, and results go to `out`. The tests run each
line of the tables. The page is made from their list: `python tests/bad_input_table.py > docs/bad-input.md`.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page() -> str:
    """The text of docs/bad-input.md."""
    lines = [_HEAD]
    for title, cases in SECTIONS.items():
        lines += [f"## {title}", "", "| Input | Stage | What is said | Exit status |", "|---|---|---|---|"]
        for case in cases:
            stages = "all" if case.stages == ALL else ", ".join(case.stages)
            says = f"`error: {case.says}`" if case.status else f"`{case.says}`"
            lines.append(f"| {_cell(case.title)} | {stages} | {_cell(says)} | {case.status} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
