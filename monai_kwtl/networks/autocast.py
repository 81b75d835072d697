"""bfloat16 where the processor multiplies it natively."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from torch import nn

from monai_kwtl.errors import KWTLError, as_bool
from monai_kwtl.networks.processors import onednn_isa

__all__ = ["AutocastInferer", "autocast_choice", "native_bfloat16"]


def native_bfloat16(device: torch.device | str) -> bool:
    """Return True if a device multiplies bfloat16 natively, and so faster than float32.

    That is CUDA from compute capability 8, and CPUs with AVX512-BF16 or AMX, where ``ONEDNN_MAX_CPU_ISA`` does not
    forbid them; elsewhere bfloat16 is emulated.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and onednn_isa() in ("AVX512_CORE_BF16", "AVX512_CORE_AMX")


def autocast_choice(amp: Any) -> bool | None:
    """Return ``amp`` as the inferers keep it: whether to run under bfloat16 autocast, None as the device decides.

    Args:
        amp: True, False, their spellings on a command line, None or ``"auto"``.

    Raises:
        KWTLError: for anything else.
    """
    try:
        return None if amp is None or str(amp) == "auto" else as_bool(amp, "amp")
    except KWTLError:
        raise KWTLError(f"amp must be auto, true or false, got {amp!r}.") from None


class AutocastInferer(Inferer):
    """Run a network under bfloat16 autocast where that is faster; for training, on any device.

    MONAI's engines know autocast on CUDA only.

    Args:
        amp: whether to use autocast; None or ``"auto"``: where the device multiplies bfloat16 natively.
    """

    def __init__(self, amp: bool | str | None = None) -> None:
        super().__init__()
        self.amp = autocast_choice(amp)

    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the network's output, in the type of ``inputs``."""
        amp = native_bfloat16(inputs.device) if self.amp is None else self.amp
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=amp):
            return network(inputs, *args, **kwargs).to(inputs.dtype)
