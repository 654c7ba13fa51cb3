"""The face of the package, as README shows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_readme_python_runs(tmp_path, cache):
    """The first block of Python in README, in a project of its own, as somebody would paste it."""
    block = re.search(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )
    if block is None:
        pytest.skip("README has no block of Python yet")
    (tmp_path / "data").mkdir()
    for name in ("codiemb_lib", "notebooks", "data/registry.yaml", "data/build"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data" / "cache").symlink_to(cache)
    ran = subprocess.run(
        [sys.executable, "-c", block[1]],
        cwd=tmp_path,
        env={**os.environ, "CODIEMB_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Record(" in ran.stdout
    assert (tmp_path / "merged" / "model.safetensors").is_file()
