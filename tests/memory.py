"""The memory that code takes, measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Of a new process the peak is its own only in VmHWM: ru_maxrss begins with the parent's.
SCRIPT = """
{before}
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
start = peak()
{measured}
print(peak() - start)
"""


def growth(before: str, measured: str) -> int:
    """By how many kB the second piece of code raises the peak of memory."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before, measured=measured)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(result.stdout)
