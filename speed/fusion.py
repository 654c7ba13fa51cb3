"""Time and memory of merging models of 335 million parameters: ours, mergekit, plain file access.

    python speed/fusion.py [--mergekit PYTHON] [--checkpoints 3 8] [--rounds 5]

Weights are made up in the shapes of bge-large (fp32, 1.3 GB a model) in a temporary folder, which
wants room for base, checkpoints and one result: 16 GB for 8 checkpoints. PYTHON is that of a
virtual environment made from speed/mergekit.txt; mergekit merges at its default options.

Each merge is a process of its own. The clock runs in it, after all imports of either library, until
the result is on the disk (mergekit returns before; it is charged the rest of the writing). The
processor's seconds, over all threads, depend less on what else the machine does. Memory is the most
that the process held, less what it held after the imports; the part of it that is the process's own
leaves out pages of mapped files, which the system may drop.

*Plain* reads all checkpoints, without the base, block by block, and writes one. A round is one of
each, in an order drawn anew, after a plain copy that does not count. Mergekit's TIES takes minutes,
and memory in which the inputs are cached: it comes once, after the last round. Ratios are medians
over rounds. The inputs are in the system's cache if it has the room, for all alike. A virtual
machine may give free memory back to its host within seconds, and to get it again can take as long
as to merge; so 3 GiB become free just before the clock starts, whatever the tool. Models with half
the layers come first, one round by ours alone: do they take the same memory?

Rows go to results/fusion.csv.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from made_up import make_models, mergekit_config, mergekit_version, run_merges
from transformers import BertConfig, BertModel

from codiemb_lib.core import hardware, versions, write_rows

RESULTS = Path(__file__).parent / "results" / "fusion.csv"
DENSITY = 0.2
FREED, BLOCK = 3 * 2**30, 2**26
SLOW = ("mergekit", "ties")
METHODS: dict[str, dict[str, Any]] = {
    "delta": {"granularity": "tensor"},
    "linear": {},
    "ties": {"density": DENSITY},
}


def bge_large(layers: int) -> BertModel:
    """BERT in the shapes of bge-large, which has 24 layers."""
    return BertModel(
        BertConfig(
            vocab_size=30522,
            hidden_size=1024,
            num_hidden_layers=layers,
            num_attention_heads=16,
            intermediate_size=4096,
        )
    )


def jobs(
    base: str, models: list[str], python: str
) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Tool, method, Python and arguments of each merge of a round."""
    files = [f"{model}/model.safetensors" for model in models]
    yield "read_and_write", "", sys.executable, {"files": files}
    for method, options in METHODS.items():
        given = {"method": method} | options
        if method == "linear":
            given["weights"] = [1.0] * len(models)  # the uniform soup
        arguments = {"base": base, "models": models, "options": given}
        yield "codiemb", method, sys.executable, arguments
    if python:
        config = mergekit_config("linear", None, models)
        yield "mergekit", "linear", python, {"config": config}
        config = mergekit_config("ties", base, models, density=DENSITY)
        yield "mergekit", "ties", python, {"config": config}


def measure(tool: str, python: str, arguments: dict[str, Any], folder: Path) -> dict[str, float]:
    """One merge, whose result is removed."""
    output = folder / "merged"
    output.mkdir()
    with open(output / "filler", "wb") as filler:  # its pages are what becomes free
        for _ in range(FREED // BLOCK):
            filler.write(bytes(BLOCK))
    os.sync()  # nothing of what came before is left to write
    try:
        (found,) = run_merges(python, [(tool, str(output), arguments)])
    finally:
        shutil.rmtree(output, ignore_errors=True)
    return {
        "seconds": found["seconds_on_disk"],
        "seconds_until_return": found["seconds"],
        "processor_seconds": found["processor_seconds"],
        "memory_mib": found["peak_mib"] - found["before_mib"],
        "own_memory_mib": found["peak_anonymous_mib"] - found["before_anonymous_mib"],
        "process_mib": found["peak_mib"],
    }


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians over rounds; ratios are those of each round, to the plain copy and to mergekit."""
    keys = ["layers", "checkpoints", "round"]
    out = []
    for (layers, count, tool, method), part in rows.groupby(
        ["layers", "checkpoints", "tool", "method"]
    ):
        line = {
            "layers": layers,
            "checkpoints": count,
            "tool": tool,
            "method": method,
            "seconds": part["seconds"].median().round(1),
            "processor s": part["processor_seconds"].median().round(1),
            "memory MiB": round(part["memory_mib"].median()),
            "of it own": round(part["own_memory_mib"].median()),
        }
        plain = rows[rows["tool"] == "read_and_write"]
        theirs = rows[(rows["tool"] == "mergekit") & (rows["method"] == method)]
        for name, other in {"plain": plain, "mergekit": theirs}.items():
            both = part.merge(other, on=keys, suffixes=("", "_other"))
            ratios = both["seconds"] / both["seconds_other"]
            if len(both) and tool == "codiemb":
                line |= {
                    f"/ {name}": round(ratios.median(), 2),
                    f"/ {name}, range": f"{ratios.min():.2f} to {ratios.max():.2f}",
                }
                if name == "mergekit":
                    memory = both["memory_mib"] / both["memory_mib_other"]
                    line["memory / mergekit"] = round(memory.median(), 3)
        out.append(line)
    return pd.DataFrame(out)


def take_turns(
    layers: int, counts: Sequence[int], python: str, rounds: int
) -> Iterator[dict[str, Any]]:
    """Rows of all merges of one size of model."""
    order = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, models = make_models(folder, bge_large(layers), max(counts))

        def row(number: int, count: int, job: tuple[str, str, str, dict[str, Any]]) -> dict:
            tool, method, interpreter, arguments = job
            found = measure(tool, interpreter, arguments, folder)
            labels = {"layers": layers, "checkpoints": count, "round": number}
            return labels | {"tool": tool, "method": method} | found

        turns = {count: list(jobs(base, models[:count], python)) for count in counts}
        for number in range(rounds):
            for count, turn in turns.items():
                quick = [job for job in turn if job[:2] != SLOW]
                if number == 0:
                    row(number, count, quick[0])  # fills the cache
                for job in order.sample(quick, len(quick)):
                    yield row(number, count, job)
        for count, turn in turns.items():
            yield from (row(rounds - 1, count, job) for job in turn if job[:2] == SLOW)


def main() -> None:
    """Measure in turns, print the medians, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", default="", metavar="PYTHON", help="of its environment")
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[3, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=24, help="less, for a quick look")
    given = parser.parse_args()
    labels = {
        "hardware": hardware(),
        "torch": versions()["torch"],
        "mergekit": mergekit_version(given.mergekit) if given.mergekit else "",
    }
    rows = []
    for layers, counts, python, rounds in (
        (given.layers // 2, given.checkpoints[:1], "", 1),
        (given.layers, given.checkpoints, given.mergekit, given.rounds),
    ):
        for row in take_turns(layers, counts, python, rounds):
            rows.append(row | labels)
            print(row, file=sys.stderr, flush=True)
            write_rows(RESULTS, pd.DataFrame(rows))  # a run of half an hour keeps what it has
    print(summary(pd.DataFrame(rows)).to_string(index=False, na_rep=""))


if __name__ == "__main__":
    main()
