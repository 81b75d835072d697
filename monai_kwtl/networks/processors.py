"""The arithmetic of a device: the instruction set that the libraries below PyTorch use."""

from __future__ import annotations

import os
import platform

import torch

__all__ = ["instruction_set", "onednn_isa"]

# by rising order; the names are those of ONEDNN_MAX_CPU_ISA. What lies between them changes whole numbers only
_ISAS = ("SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_BF16", "AVX512_CORE_AMX")
_LIMITS = {isa: isa for isa in _ISAS} | {
    "AVX": "SSE41",
    "AVX2_VNNI": "AVX2",
    "AVX2_VNNI_2": "AVX2",
    "AVX512_CORE_VNNI": "AVX512_CORE",
    "AVX512_CORE_FP16": "AVX512_CORE_BF16",
    "AVX10_1_512": "AVX512_CORE_BF16",
}


def onednn_isa() -> str:
    """Return the instruction set that oneDNN, which computes convolutions on CPUs, uses in this process.

    That is the best one that the processor has, up to the environment variable ``ONEDNN_MAX_CPU_ISA`` (older name:
    ``DNNL_MAX_CPU_ISA``), as it stood when the process began; oneDNN passes over names that it does not know.

    Returns:
        ``SSE41``, ``AVX2``, ``AVX512_CORE``, ``AVX512_CORE_BF16`` or ``AVX512_CORE_AMX``; the name of the architecture
        where that is not x86-64.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return platform.machine()
    has = {
        "AVX2": torch.cpu._is_avx2_supported(),
        "AVX512_CORE": torch.cpu._is_avx512_supported(),
        "AVX512_CORE_BF16": torch.cpu._is_avx512_bf16_supported(),
        "AVX512_CORE_AMX": torch.cpu._is_amx_tile_supported(),
    }
    asked = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    most = _ISAS.index(_LIMITS.get(asked, _ISAS[-1]))
    return max((isa for isa in _ISAS[: most + 1] if has.get(isa, True)), key=_ISAS.index)


def instruction_set(device: torch.device | str = "cpu") -> str:
    """Return in a line what a device computes with; equal lines, versions and numbers of threads give equal bits.

    Args:
        device: that computes.

    Returns:
        On CPUs what oneDNN and ATen use, such as ``oneDNN AVX512_CORE_BF16, ATen AVX512``; the name of a GPU.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"oneDNN {onednn_isa()}, ATen {torch.backends.cpu.get_cpu_capability()}"
