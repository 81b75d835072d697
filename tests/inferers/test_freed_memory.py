"""What is freed stays in the process, and can be given back."""

import subprocess
import sys
import textwrap

import pytest

GIVEN_BACK = """
    import re, sys
    from monai_kwtl.inferers.memory import give_back_freed_memory, keep_freed_memory

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
