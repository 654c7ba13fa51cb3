"""Golden values: the numbers of a room as they were recorded, and the check against them.

`tests/ROOM/golden.json` holds them, by case, beside the room's NUMERICS at that time. The cases
stand in `tests/ROOM/test_golden.py`. `python -m tests.golden ROOM` computes all of them anew and
writes the file. Where a recorded value changes, `codiemb_lib.ROOM.NUMERICS` must be above the
recorded number; a new case needs no new number.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

ROOMS = ("data", "model", "evaluate", "train", "fuse", "space")
RELATIVE, ABSOLUTE = 1e-5, 1e-7
REMEDY = (
    "Either a defect: mend it. Or the numbers are meant to change: raise NUMERICS of the room "
    "with a dated reason, then `python -m tests.golden {room}`, and commit both."
)

Cases = Mapping[str, Callable[[], Any]]  # None: what a case needs is not there


def path_of(room: str) -> Path:
    return Path(__file__).parent / room / "golden.json"


def numerics(room: str) -> int | None:
    """The number that a room's face states, or None."""
    try:
        return getattr(importlib.import_module(f"codiemb_lib.{room}"), "NUMERICS", None)
    except ModuleNotFoundError as error:
        if error.name != f"codiemb_lib.{room}":
            raise
        return None


def check(room: str, found: Mapping[str, Any]) -> None:
    """Compare values by case with those recorded; other cases are not looked at.

    Raises:
        AssertionError: It names each key that differs, what was expected and what was found.
    """
    path = path_of(room)
    recorded = json.loads(path.read_text(encoding="utf-8"))
    stated, remedy = numerics(room), REMEDY.format(room=room)
    if stated is not None and stated != recorded["numerics"]:
        raise AssertionError(
            f"{path}: expected the values of codiemb_lib.{room}.NUMERICS = {stated}, found those "
            f"of {recorded['numerics']}. {remedy}"
        )
    lines = [
        line
        for case, value in found.items()
        for line in _differences(case, recorded["values"].get(case), plain(value))
    ]
    if lines:
        shown = "\n".join(lines[:20] + [f"and {len(lines) - 20} more"] * (len(lines) > 20))
        raise AssertionError(f"{path}:\n{shown}\n{remedy}")


def _differences(key: str, expected: Any, found: Any, near_zero: float = ABSOLUTE) -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        for name in expected:
            yield from _differences(f"{key} / {name}", expected[name], found[name])
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        if " / log / " in key:  # in single precision 1 - r, say, rounds as 1 does
            near_zero = max(near_zero, 1e-6)
        if key.endswith(" / some"):  # of one array: what rounds a large one rounds its neighbours
            near_zero = max(near_zero, RELATIVE * max(map(abs, expected), default=0.0))
        for place, pair in enumerate(zip(expected, found, strict=True)):
            yield from _differences(f"{key} / {place}", *pair, near_zero)
    elif float in (kinds := {type(expected), type(found)}) and kinds <= {int, float}:
        if not math.isclose(expected, found, rel_tol=RELATIVE, abs_tol=near_zero):
            yield f"{key}: expected {expected}, found {found}"
    elif len(kinds) > 1 or expected != found:
        yield f"{key}: expected {_shown(expected)}, found {_shown(found)}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"the keys {sorted(value)}"
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)


def plain(value: Any) -> Any:
    """As JSON has it, numbers with ten significant digits; of a table the lists of its columns."""
    if isinstance(value, pd.DataFrame):
        value = value.to_dict("list")
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else str(value)
    return value


def summary(values: Any) -> dict[str, Any]:
    """What stands for an array or a tensor: type, shape, sums, and five of its entries.

    What is above zero and what is below is summed apart: the sum of both may be rounding alone.
    """
    tensor = torch.as_tensor(values)
    flat = tensor.flatten().double()
    places = np.linspace(0, len(flat) - 1, min(5, len(flat))).astype(int)
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "above": flat.clamp(min=0).sum(),
        "below": flat.clamp(max=0).sum(),
        "squares": flat.square().sum(),
        "some": flat[places],
    }


def digest(value: Any) -> str:
    """A hash of something by what it looks like written out."""
    return hashlib.sha256(repr(plain(value)).encode()).hexdigest()[:16]


def unit_rows(*shape: int, seed: int = 0) -> np.ndarray:
    """Random unit vectors, float32, of the last axis."""
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def remake(room: str, cases: Cases) -> str:
    """Record the values of all cases; what cannot be computed here stays as it is.

    Raises:
        ValueError: A recorded value changes, and NUMERICS did not rise.
    """
    path, stated = path_of(room), numerics(room) or 1
    found = {case: compute() for case, compute in cases.items()}
    values = {case: plain(value) for case, value in found.items() if value is not None}
    if path.is_file():
        recorded = json.loads(path.read_text(encoding="utf-8"))
        before = {case: value for case, value in recorded["values"].items() if case in cases}
        if stated <= recorded["numerics"]:
            changed = [c for c in before if [*_differences(c, before[c], values.get(c, before[c]))]]
            if changed:
                raise ValueError(
                    f"{path}: {changed} changed, so expected codiemb_lib.{room}.NUMERICS above "
                    f"{recorded['numerics']}, found {stated}. {REMEDY.format(room=room)}"
                )
            values |= before  # to the last digit
        values = before | values
    path.write_text(_written({"numerics": stated, "values": values}) + "\n", encoding="utf-8")
    kept = [case for case, value in found.items() if value is None]
    return f"{path}: {len(found) - len(kept)} cases" + f", not computed: {kept}" * bool(kept)


def _written(value: Any, indent: str = "") -> str:
    """JSON with a line a key, but for lists and for mappings of nothing but numbers and lists."""
    if not isinstance(value, dict) or not any(isinstance(v, dict) for v in value.values()):
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    inner = indent + " "
    lines = [f"{inner}{json.dumps(k)}: {_written(v, inner)}" for k, v in sorted(value.items())]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def main(arguments: list[str] | None = None) -> int:
    """Run the script; the exit status is 2 where NUMERICS did not rise."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("room", choices=ROOMS)
    room = parser.parse_args(arguments).room
    try:
        print(remake(room, importlib.import_module(f"tests.{room}.test_golden").CASES))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
