"""What is freed stays in the process, and is used again."""

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
    import resource, sys
    import torch
    from monai_kwtl.allocator import keep_freed_memory

    if sys.argv[1] == "keep":
        assert keep_freed_memory() and keep_freed_memory()
    torch.set_num_threads(1)
    for _ in range(3):
        torch.ones(1 << 21)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(1 << 21)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    """Pages that the system had to provide for 50 blocks of 8 MiB, one after the other."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_blocks_of_a_training_step_are_not_asked_of_the_system_again():
    assert page_faults("keep") < 100
    assert page_faults("leave") > 50 * 1000  # 8 MiB are 2048 pages
