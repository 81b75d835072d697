"""Simulated images with masks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["cells", "fields", "looks", "pools", "simulation", "specimens", "ultrastructure"],
    submod_attrs={
        "cells": ["Cells", "Outlines", "paint", "scatter_cells"],
        "fields": ["coordinates", "expose", "fibrous", "smooth_noise"],
        "looks": ["DOMAINS", "Look", "check_domain", "draw_look", "vary_look"],
        "pools": ["make_demo_pool", "make_pool"],
        "simulation": ["side", "simulate", "whole"],
        "specimens": ["culture", "fluorescence", "section"],
        "ultrastructure": ["electron_micrograph"],
    },
)
