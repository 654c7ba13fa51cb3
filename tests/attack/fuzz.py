"""Damaged files for every reader, and what became of them.

`python -m tests.attack.fuzz NUMBER SEED [READER]` prints the finds.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from codiemb_lib.core import CodiembError
from tests.attack.readers import READERS, Reader

HANG = 60  # seconds, after which a reader is given up
OUTCOMES = ("refused", "same content", "traceback", "silent acceptance", "vague refusal")


def judge(reader: Reader, folder: Path, names: list[str]) -> tuple[str, str]:
    """What became of the files in a folder, and why."""
    try:
        held = reader.read(folder)
    except CodiembError as error:
        said = str(error)
        if any(name.rpartition("/")[2] in said for name in names) or str(folder) in said:
            return "refused", said
        return "vague refusal", said
    except BaseException:  # PanicException of Rust is no Exception
        return "traceback", traceback.format_exc()
    try:
        agrees = reader.agree(held, reader.oracle(folder))
    except Exception as error:
        return "silent acceptance", f"{type(error).__name__}: {error}"
    return ("same content", "") if agrees else ("silent acceptance", f"held {held!r:.2000}")


def write(folder: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def inputs(reader: Reader, name: str, number: int, seed: int) -> Iterator[dict[str, bytes]]:
    """Valid files, and then so many sets of them of which one is damaged."""
    files = dict(reader.files())
    yield files
    open_to_damage = [name for name in files if name not in reader.kept]
    for count in range(number):
        g = Random(f"{seed} {name} {count}")
        damaged = g.choice(open_to_damage)
        yield files | {damaged: reader.mutation(files[damaged], g)}


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attack(name: str, number: int, seed: int) -> tuple[Counter, list[str]]:
    """How often a reader came to which outcome, and its finds."""
    reader, counts, finds = READERS[name], Counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "input"
        for place, files in enumerate(inputs(reader, name, number, seed)):
            write(folder, files)
            with no_longer_than(HANG):
                outcome, why = judge(reader, folder, [*files])
            if not place:
                assert outcome == "same content", f"{name}: {outcome} of valid files: {why}"
                continue
            counts[outcome] += 1
            if outcome not in ("refused", "same content"):
                finds.append(f"{name}, seed {seed}, input {place - 1}: {outcome}: {why}")
    return counts, finds


def main(number: str, seed: str, *names: str) -> None:
    logging.disable(logging.WARNING)
    for name in names or READERS:
        counts, finds = attack(name, int(number) * READERS[name].share // 100 or 1, int(seed))
        print(name, dict(counts))
        print(*finds, sep="\n---\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
