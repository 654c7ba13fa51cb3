"""The attack in its longer form: `python -m tests.attack` writes its figures to tests/README.md."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path

from codiemb_lib.core import git_commit, hardware
from tests.attack.commands import COMMANDS
from tests.attack.fuzz import OUTCOMES, attack
from tests.attack.readers import READERS

PAGE = Path(__file__).parents[1] / "README.md"
TEXT = """# The tests

A folder for each room of `codiemb_lib`, and `attack`, which does to all of them what goes wrong
outside: kills, two at once, full disks, damaged files. `make test` attacks in brief; `make attack`
at length, and writes this page.

{day}, seed {seed}, commit {commit}, on {machine}.

## Commands in trouble

A kill comes right before a change of the disk, the pair has a TMPDIR each, full disks are a limit
of the sizes of files and a small file system in memory. What lies there is then read, the same call
is made, and all files are compared with those of an unbroken run.

{commands}

## Damaged files

Each is read by codiemb_lib and by an oracle that shares no code with it. "Vague" is a refusal that
does not name the file, "silent" an acceptance of what the oracle refuses or reads otherwise.

{inputs}
"""


def table(head: list[str], rows: list[list[object]]) -> str:
    sums: list[object] = ["**sum**", *map(sum, zip(*(row[1:] for row in rows), strict=True))]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows, sums]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def commands(kills: int, seed: int) -> tuple[str, list[str]]:
    """The table of all tries, and what went wrong."""
    counts: dict[str, Counter] = {name: Counter() for name in COMMANDS}
    finds = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.attack.harness", folder, str(seed), str(kills)]
        with subprocess.Popen(
            command,
            cwd=PAGE.parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            for made in map(json.loads, process.stdout):
                outcome = made["found"].partition(":")[0]
                kind = "kill" if made["trouble"] == "kill" else "other"
                counts[made["command"]].update([kind, outcome])
                finds += [f"{made}"] if outcome != "same" else []
    if process.returncode:
        raise SystemExit(process.returncode)
    outcomes = ["same", "refused", "not the same", "a part is read"]
    head = ["command", "kills", "pairs and full disks", "same content", "refused", "other content"]
    rows = [[name, *(of[o] for o in ("kill", "other", *outcomes))] for name, of in counts.items()]
    return table([*head, "a part read"], rows), finds


def inputs(number: int, seed: int) -> tuple[str, list[str]]:
    """The table of all inputs, and what went wrong."""
    rows, finds = [], []
    for name, reader in READERS.items():
        counts, found = attack(name, number * reader.share // 100, seed)
        rows.append([name, counts.total(), *(counts[outcome] for outcome in OUTCOMES)])
        finds += found
    head = ["reader", "inputs", "refused", "same content", "tracebacks", "silent", "vague"]
    return table(head, rows), finds


def main() -> int:
    """Attack; the status is 1 if there is a find."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--kills", type=int, default=24, help="of each command; 300 in all")
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=date.today().toordinal())
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    read, silent = inputs(asked.inputs, asked.seed)
    called, broken = commands(asked.kills, asked.seed)
    words = {"day": f"{date.today()}", "seed": asked.seed, "commands": called, "inputs": read}
    words |= {"commit": git_commit(), "machine": hardware()}
    PAGE.write_text(TEXT.format(**words), encoding="utf-8")
    print(*silent, *broken, PAGE, sep="\n---\n")
    return int(bool(silent or broken))


if __name__ == "__main__":
    sys.exit(main())
