"""The device to compute on."""

from __future__ import annotations

import torch

from monai_kwtl.errors import KWTLError
from monai_kwtl.utils.distributed import local_rank, started_together

__all__ = ["choose_device"]


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device to compute on; ``auto`` is CUDA where there is one, else the CPU.

    Of several processes on one machine each takes a GPU of its own.

    Raises:
        KWTLError: for a device that torch does not know or that is not there, and for one GPU for several processes.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if str(device) == "auto" else str(device)
    if started_together() > 1 and name.startswith("cuda") and torch.cuda.is_available():
        if name not in ("cuda", f"cuda:{local_rank()}"):
            raise KWTLError(f"device {name!r} is one GPU, but there are several processes; use cuda: each takes one.")
        if local_rank() >= torch.cuda.device_count():
            raise KWTLError(
                f"there are more processes than GPUs ({torch.cuda.device_count()}); give torchrun a smaller "
                "--nproc_per_node, or use --device cpu."
            )
        name = f"cuda:{local_rank()}"
    try:
        chosen = torch.device(name)
        if str(device) != "auto":
            torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        others = "auto, cpu or cuda" if torch.cuda.is_available() else "auto or cpu, there is no CUDA here"
        raise KWTLError(f"device {device!r} cannot be used here; use {others}.") from error
    return chosen
