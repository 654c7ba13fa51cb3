"""Small damages of files, drawn by a generator: of bytes, of lines, of what JSON and YAML say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from random import Random

VALUE = re.compile(
    rb'"(?:[^"\\\n]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|true|false|null|\[\]|\{\}'
)
KEY = re.compile(rb'("(?:[^"\\\n]|\\.)*"): ')
OTHERS = [
    b"0",
    b"-1",
    b"1.5",
    b"true",
    b"null",
    b'""',
    b'"x"',
    b'"1"',
    b"[]",
    b"{}",
    b"[1]",
    b'["x"]',
]
OTHERS += [
    b"NaN",
    b"Infinity",
    b"1e999",
    b"1" * 400,
    b"9" * 5000,
    b"2" * 19,
    b"yes",
    b"2024-13-45",
    b"0x10",
]
OTHERS += [
    b"[" * 60 + b"]" * 60,
    b"[" * 3000 + b"]" * 3000,
    b'{"a": ' * 100_000,
    b'"\\ud800"',
    b'" \\u200b"',
]


def flip(data: bytes, g: Random) -> bytes:
    place = g.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << g.randrange(8)]) + data[place + 1 :]


def cut(data: bytes, g: Random) -> bytes:
    return data[: g.randrange(len(data))]


def lose(data: bytes, g: Random) -> bytes:
    start = g.randrange(len(data))
    return data[:start] + data[start + g.randint(1, 20) :]


def insert(data: bytes, g: Random) -> bytes:
    place = g.randrange(len(data) + 1)
    added = g.choice(
        [b"\0", b"\n", b"\r", b'"', b"\t", b",", b" ", b"\xff", b"\xe2\x80\xa8", b"9", b"-"]
    )
    return data[:place] + added + data[place:]


def change_line(data: bytes, g: Random) -> bytes:
    """Drop a line, double it, or swap it with another."""
    lines = data.splitlines(keepends=True)
    here, there = g.randrange(len(lines)), g.randrange(len(lines))
    what = g.randrange(3)
    if what == 2:
        lines[here], lines[there] = lines[there], lines[here]
    else:
        lines[here : here + 1] = [lines[here]] * 2 * what
    return b"".join(lines)


def encode(data: bytes, g: Random) -> bytes:
    text = data.decode(errors="replace") + "é"
    return text.encode(
        g.choice(["utf-16", "utf-16-le", "latin-1", "utf-8-sig", "utf-32"]), "replace"
    )


def swap(data: bytes, g: Random) -> bytes:
    """Another value, of another type perhaps, in the place of one."""
    found = [*VALUE.finditer(data)]
    if not found:
        return flip(data, g)
    start, end = g.choice(found).span()
    return data[:start] + g.choice(OTHERS) + data[end:]


def double_key(data: bytes, g: Random) -> bytes:
    found = [*KEY.finditer(data)]
    if not found:
        return change_line(data, g)
    key = g.choice(found)
    return data[: key.start()] + key[0] + g.choice(OTHERS) + b", " + data[key.start() :]


MUTATIONS: list[Callable[[bytes, Random], bytes]] = [
    *(flip, flip, cut, lose, insert, change_line, encode, swap, swap, double_key)
]


def mutate(data: bytes, g: Random) -> bytes:
    """One damage, or a few."""
    for _ in range(g.choice([1, 1, 1, 2, 3])):
        if data:
            data = g.choice(MUTATIONS)(data, g)
    return data


def mutate_header(data: bytes, g: Random) -> bytes:
    """Damage a safetensors file: mostly its header, which then states its own length again."""
    if g.random() < 0.3:
        return mutate(data, g)
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if g.random() < 0.5:
        entries = json.loads(header)
        entry = entries[g.choice([name for name in entries if name != "__metadata__"])]
        where, by = g.randrange(2), g.choice([-8, -4, -1, 1, 4, 8])
        for field in g.choice([["data_offsets"], ["data_offsets", "shape"]]):
            entry[field][min(where, len(entry[field]) - 1)] += by
        if g.random() < 0.5:
            entry["data_offsets"] = [offset + by for offset in entry["data_offsets"]]
        header = json.dumps(entries).encode()
    else:
        header = mutate(header, g)
    return len(header).to_bytes(8, "little") + header + g.choice([rest, rest, rest + b"\0" * 8])
