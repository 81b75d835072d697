"""The curve of the rounds so far, as a picture that the page holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

__all__ = ["rounds_picture"]

WIDTH, HEIGHT = 420, 180
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 14, 34


def rounds_picture(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Draw the held-out IoU over the labelled regions, a dot a round.

    Args:
        rounds: dicts of "round", "regions" (labelled up to then), "pixels", and "iou" in [0, 1] or None.

    Returns:
        "svg", ready to be put inline, and "summary" in words; None where no round has a mask.
    """
    labelled = [entry for entry in rounds if entry["regions"]]
    if not labelled:
        return None
    last = labelled[-1]
    summary = f"{len(labelled)} {'round' if len(labelled) == 1 else 'rounds'}, {last['regions']} regions labelled"
    measured = [entry for entry in labelled if entry["iou"] is not None]
    if not measured:
        note = "No IoU yet: it is measured where masks of at least five images let some be held out."
        return {"summary": summary, "svg": Markup("<p>{}</p>").format(note)}
    most = max(entry["regions"] for entry in measured)
    points = [
        (LEFT + (WIDTH - LEFT - RIGHT) * entry["regions"] / most, TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - entry["iou"]))
        for entry in measured
    ]
    lines = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity=".2"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{fraction:g}</text>'
        for fraction in (0.0, 0.5, 1.0)
        for y in [TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - fraction)]
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="currentColor"><title>round {entry["round"]}: '
        f"{entry['regions']} regions, IoU {entry['iou']:.3f}</title></circle>"
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{entry["regions"]}</text>'
        for entry, (x, y) in zip(measured, points, strict=True)
    ]
    values = ", ".join(format(entry["iou"], ".3f") for entry in measured)
    words = escape(f"IoU on held-out images, {values}")
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{words}" font-size="11" '
        f'fill="currentColor" style="max-width:100%;height:auto">{"".join(lines)}'
        f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-width="2"/>{"".join(dots)}'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">labelled regions</text>'
        f'<text x="{LEFT - 38}" y="{TOP - 3}">IoU</text></svg>'
    )
    return {"summary": f"{summary}, IoU {measured[-1]['iou']:.3f} on held-out images", "svg": Markup(svg)}
