"""Messages of a run that fails: one line that the user can act on, from one of its processes."""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType

import torch
import torch.distributed as dist

from monai_kwtl.errors import KWTLError
from monai_kwtl.utils.distributed import FailedElsewhereError, first_to_fail, ranks

__all__ = ["install_error_hook", "message_for_user"]

# what to do about errors that only come of writing; Windows has no quota
_TO_DO = dict.fromkeys(
    (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)), "make room, or choose another --output_dir"
) | {errno.EROFS: "choose another --output_dir"}


def message_for_user(error: BaseException | None) -> str | None:
    """Return the message for an error that the user can fix, from the chain of causes; None for a bug."""
    while error is not None:
        text = str(error)
        passed_on = re.findall(r"^monai_kwtl\.errors\.KWTLError: (.+)", text, re.MULTILINE)
        if passed_on:  # a data loader's worker passes errors on as the text of their traceback
            return passed_on[0]
        if isinstance(error, OSError) and error.errno in _TO_DO:
            where = f" {error.filename}" if error.filename else ""
            return f"cannot write{where} ({error.strerror}): {_TO_DO[error.errno]}"
        if isinstance(error, OSError) and error.strerror and not isinstance(error, dist.DistError):
            where = f"{error.filename}: " if error.filename is not None else ""
            return f"{where}{error.strerror}; fix that, or choose another place"
        if isinstance(error, (KWTLError, OSError)):
            return text.strip().splitlines()[-1] if "Original Traceback" in text else " ".join(text.split())
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/" in text):
            return "another process of this run has ended or does not answer any more; run it again, or with fewer."
        # torch has a class for the memory of a GPU only
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in text:
            return "the memory does not suffice; use a smaller --tile, in training a smaller --crop or --batch_size"
        error = error.__cause__
    return None


class _ThreadHook:
    """Hook for exceptions that end a thread: none for TensorBoard's, the former hook for all others."""

    def __init__(self, former: Callable[[threading.ExceptHookArgs], None]) -> None:
        self.former = former

    def __call__(self, arguments: threading.ExceptHookArgs) -> None:
        theirs = isinstance(arguments.exc_value, OSError) and type(arguments.thread).__name__ == "_AsyncWriterThread"
        if not theirs or os.environ.get("KWTL_TRACEBACK"):
            self.former(arguments)


def _failed_elsewhere(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, FailedElsewhereError):
        error = error.__cause__
    return error is not None


def install_error_hook() -> None:
    """Print errors that the user can fix as one line instead of a traceback; the exit status stays 1.

    Those are :class:`KWTLError`, what the operating system refuses (``OSError``), and too little memory, also where
    MONAI wrapped them.
    Everything else is a bug and keeps its traceback, as all errors do where ``KWTL_TRACEBACK`` is set. Of several
    processes only the first one to fail says why. TensorBoard's thread keeps silent: what stops it is raised again
    where it is given the next event.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            if ranks().rank == 0:
                print("\nstopped; nothing of yours was changed.", file=sys.stderr)
            return
        if _failed_elsewhere(error) or not first_to_fail():
            return
        message = message_for_user(error)
        if message is None or os.environ.get("KWTL_TRACEBACK"):
            traceback.print_exception(kind, error, trace)
            return
        print(f"error: {message}", file=sys.stderr)

    sys.excepthook = hook
    if not isinstance(threading.excepthook, _ThreadHook):
        threading.excepthook = _ThreadHook(threading.excepthook)
