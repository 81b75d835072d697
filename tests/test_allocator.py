"""What is freed stays in the process, and is used again."""

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
    import resource, sys
    import torch
    from monai_kwtl.allocator import freed_memory_is_kept, keep_freed_memory
    from monai_kwtl.networks import FCRN

    assert not freed_memory_is_kept()
    if sys.argv[1] == "keep":
        assert keep_freed_memory() and keep_freed_memory() and freed_memory_is_kept()
    torch.set_num_threads(1)
    network = FCRN().to(memory_format=torch.channels_last)
    image = torch.rand(4, 1, 128, 128)
    for number in range(13):
        if number == 3:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        with torch.autocast("cpu", dtype=torch.bfloat16):
            network(image).float().mean().backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    """Pages that the system had to provide in ten training steps."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_the_layers_of_a_training_step_are_not_asked_of_the_system_again():
    kept, left = page_faults("keep"), page_faults("leave")
    assert kept < 4000 < 10000 < left, (kept, left)


GIVEN_BACK = """
    import re, sys
    from monai_kwtl.allocator import give_back_freed_memory, keep_freed_memory

    assert keep_freed_memory()
    import numpy as np
    resident = lambda: int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
    blocks = [np.ones(1 << 21, dtype=np.uint8) for _ in range(100)]  # 200 MiB
    last = np.ones(1 << 20, dtype=np.uint8)  # nothing above it is free
    del blocks
    kept = resident()
    assert give_back_freed_memory()
    print(kept - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_what_is_kept_can_be_given_back():
    script = textwrap.dedent(GIVEN_BACK)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 150
