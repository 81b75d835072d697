"""What this machine could do at most, and how long a piece of work takes."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from monai_kwtl.bundle.provenance import versions
from monai_kwtl.networks.autocast import native_bfloat16

ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, str | int]:
    """Describe the machine that the figures were taken on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return {"processor": name, "cores": os.cpu_count() or 1, "threads": torch.get_num_threads(), **versions()}


def multiplication_rate(dtype: torch.dtype = torch.float32, seconds: float = 1.0) -> float:
    """Measure the matrix multiplication rate of this machine, in floating point operations per second."""
    size = 2048
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    a @ b
    best, begun = np.inf, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def convolution_rate(dtype: torch.dtype = torch.float32, seconds: float = 1.0) -> float:
    """Measure the rate of 3x3 convolutions of 128 channels, channels last, in floating point operations per second."""
    layer = torch.nn.Conv2d(128, 128, 3, padding=1, bias=False).to(dtype=dtype, memory_format=torch.channels_last)
    x = torch.randn(1, 128, 256, 256).to(dtype=dtype, memory_format=torch.channels_last)
    best, begun = np.inf, time.perf_counter()
    with torch.inference_mode():
        layer(x)
        while time.perf_counter() - begun < seconds:
            start = time.perf_counter()
            layer(x)
            best = min(best, time.perf_counter() - start)
    return 2.0 * layer.weight.numel() * 256 * 256 / best


def floor_dtype() -> torch.dtype:
    """Return the arithmetic of this machine's floor: bfloat16 where the processor has it."""
    return torch.bfloat16 if native_bfloat16("cpu") else torch.float32


def operations(network: torch.nn.Module, height: int, width: int) -> int:
    """Count the operations of the convolutions of one forward pass, a multiplication and an addition as two."""
    total = 0

    def count(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        weights = module.weight.numel()
        transposed = isinstance(module, torch.nn.ConvTranspose2d)
        places = inputs[0][0, 0].numel() if transposed else output[0, 0].numel()
        total += 2 * weights * places * output.shape[0]

    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            network(torch.zeros(1, 1, height, width))
    finally:
        for hook in hooks:
            hook.remove()
    return total


def timed(work: Callable[[], object], repeats: int) -> tuple[float, object]:
    """Return the median wall time over repeats, and the last result."""
    times, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def _texture(rng: np.random.Generator, height: int, width: int, grain: int = 8) -> np.ndarray:
    """Blocky noise, uint8 (height, width)."""
    coarse = rng.integers(20, 236, (-(-height // grain), -(-width // grain)), dtype=np.uint8)
    fine = rng.integers(0, 20, (height, width), dtype=np.uint8)
    return coarse.repeat(grain, 0).repeat(grain, 1)[:height, :width] + fine
