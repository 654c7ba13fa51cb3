"""One process that merges: the part of the benchmarks of fusion that runs in either environment.

    PYTHON speed/merge_once.py < JOBS

JOBS is a JSON list of `[tool, output, arguments]`. For each, a line of JSON on standard output says
how long it took, after all imports, until the result was returned and until it was on the disk, and
what memory the process held (Linux): at most, and before it began. What lies at the output is
removed just before.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

BLOCK = 2**23


def codiemb(output: str, base: str, models: list[str], options: dict) -> Callable[[], object]:
    """Ours, on model folders."""
    from codiemb_lib import merge

    return lambda: merge(base, models, output=output, **options)


def mergekit(output: str, config: dict) -> Callable[[], object]:
    """What `mergekit-pytorch` does at its default options, on safetensors files."""
    from mergekit.graph import Executor
    from mergekit.options import MergeOptions
    from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig, plan_flat_merge

    def merge() -> None:
        options = MergeOptions(quiet=True)
        parsed = RawPyTorchMergeConfig.model_validate(config)
        tasks = plan_flat_merge(parsed, output, False, False, options)
        Executor(tasks, math_device=options.device, storage_device="cpu").execute()

    return merge


def read_and_write(output: str, files: list[str]) -> Callable[[], object]:
    """No merge: read all files, block by block into one buffer, and write the first again."""
    block = memoryview(bytearray(BLOCK))

    def copy() -> None:
        Path(output).mkdir()
        with open(Path(output, "model.safetensors"), "wb", buffering=0) as copied:
            for file in files:
                with open(file, "rb", buffering=0) as stream:
                    while size := stream.readinto(block):
                        if file == files[0]:
                            copied.write(block[:size])

    return copy


def memory(key: str) -> int:
    """A line of this process's status, in KiB: VmRSS is what it holds, VmHWM the most it held.

    Unlike `ru_maxrss`, the latter does not start at what the parent held. Of VmRSS, RssAnon is the
    process's own; the rest are pages of mapped files, which the system may drop.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status: expected {key}, found none. This needs Linux.")


def sync(folder: str) -> None:
    """Wait until all files of a folder are on the disk."""
    for path in Path(folder).rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def main() -> None:
    """Run the jobs."""
    tools = {function.__name__: function for function in (codiemb, mergekit, read_and_write)}
    for tool, output, arguments in json.load(sys.stdin):
        merge = tools[tool](output, **arguments)
        held, own = memory("VmRSS"), memory("RssAnon")
        if os.path.exists(output):
            shutil.rmtree(output)
        worked, began = time.process_time(), time.perf_counter()
        merge()
        returned = time.perf_counter()
        sync(output)
        measured = {
            "seconds": returned - began,
            "seconds_on_disk": time.perf_counter() - began,
            "processor_seconds": time.process_time() - worked,
            "before_mib": held / 2**10,
            "peak_mib": memory("VmHWM") / 2**10,
            "before_anonymous_mib": own / 2**10,
        }
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
