"""Simulated microscopy images with exact masks, and pools of them."""

from __future__ import annotations

from monai_kwtl.synthetic.looks import DOMAINS, Look, draw_look
from monai_kwtl.synthetic.pools import make_demo_pool, make_pool
from monai_kwtl.synthetic.simulation import simulate

__all__ = ["DOMAINS", "Look", "draw_look", "make_demo_pool", "make_pool", "simulate"]
