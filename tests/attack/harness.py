"""Commands in trouble: killed before a change of the disk, twice at once, on a disk that is full.

`python -m tests.attack.harness FOLDER SEED KILLS [COMMAND...]` prints a line of JSON for each try:
of each command as many kills, a pair at once, and two disks that are too small. A try is a fork of
a process that has run this command once, and so costs no start; that one is a fork of one that has
loaded everything, but run nothing: threads of other commands a fork would lack. After each try what
lies there must be read as whole, or as absent, and the same call must come to the same content as
an unbroken run.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from codiemb_lib.core import sha256_text
from tests.attack.commands import COMMANDS, DOUBLED, CommandError
from tests.conftest import tiny_encoder
from tests.test_house import ROOMS
from tests.train.conftest import make_project

CHANGES = {f"os.{change}" for change in ("link", "mkdir", "remove", "rename", "rmdir", "truncate")}
CHANGES |= {f"shutil.{change}" for change in ("copyfile", "copytree", "move", "rmtree")}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OF_A_CLOCK = ("seconds", "peak_memory_mib", "log.csv")  # keys of JSON, the last with its hash
FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EFBIG)]


@dataclass
class Try:
    """What became of a command in trouble."""

    command: str
    trouble: str  # "kill", "pair", "size" or "tmpfs"
    where: str
    found: str = "same"  # or what is wrong


class Moments:
    """An audit hook that counts the changes of the disk, and kills this process before one."""

    def __init__(self) -> None:
        self.count, self.fatal = 0, 0
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            changes = flags & WRITES and not str(path).startswith("/dev/")
        else:
            changes = event in CHANGES
        if changes:
            self.count += 1
            if self.count == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)


class Fork:
    """A fork of this process that does one thing; what it prints comes through a pipe."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.printed, prints = os.pipe()
        if (child := os.fork()) == 0:
            status = 1
            try:
                os.dup2(prints, 1), os.dup2(prints, 2)
                act()
                status = 0
            except (CommandError, OSError) as error:
                print(error)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(status)
        os.close(prints)
        self.child = child

    def wait(self) -> tuple[int, str]:
        """How it ended, and the end of what it printed."""
        with open(self.printed, errors="replace") as stream:
            said = stream.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1]), said[-2000:]


def digest(read: object) -> str:
    return sha256_text(repr(read))


def content(folder: Path) -> dict[str, object]:
    """What lies in a folder, hidden files too, but for what a clock says.

    The last act of a write is to remove its scratch, which is empty then; where a kill prevents it,
    and the file need not be written again, it stays until that file is.
    """
    scratches = folder.rglob(".*.partial")
    empty = {path for path in scratches if [*path.iterdir()] in ([], [path / ".lock"])}
    found = (path for path in sorted(folder.rglob("*")) if not empty & {path, path.parent})
    paths = {path.relative_to(folder).as_posix(): path for path in found}
    return {name: "a folder" if p.is_dir() else untimed(p) for name, p in paths.items()}


def untimed(file: Path) -> object:
    data = file.read_bytes()
    head = data.partition(b"\n")[0]
    if file.suffix == ".json" and b"seconds" in data:
        return without_clock(json.loads(data))
    if b"," in head and b"seconds" in head:
        table = pd.read_csv(io.BytesIO(data))
        return table.drop(columns=[name for name in table if "second" in name]).to_csv()
    return data


def without_clock(value: object) -> object:
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if k not in OF_A_CLOCK}
    return [*map(without_clock, value)] if isinstance(value, list) else value


def differences(expected: dict[str, object], found: dict[str, object]) -> str:
    names = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    return ", ".join(
        f"{n} {'other than it' if n in expected else 'besides what'} was" for n in names
    )


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Make a folder the project, and that of all relative paths."""
    before = dict(os.environ)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["CODIEMB_ROOT"] = str(folder)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        os.environ.clear()
        os.environ |= before


class Victim:
    """A command with its unbroken run, which the others are compared with."""

    def __init__(self, name: str, folder: Path, moments: Moments) -> None:
        self.name, self.command, self.moments = name, COMMANDS[name], moments
        self.template, self.folder = folder / "start", folder / "here"
        make_project(self.template, tiny_encoder())
        with inside(self.template):
            self.command.start()
        with self.attempt():
            before, moments.count = digest(self.command.read()), 0
            self.command.call()
            self.changes = moments.count
            self.states = {before, digest(self.command.read()), digest(None)}  # ever to be seen
            self.whole = content(self.folder)
        self.sizes = [len(data) for data in self.whole.values() if isinstance(data, bytes)]

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        shutil.copytree(self.template, self.folder, dirs_exist_ok=True)
        with inside(self.folder):
            yield

    def do(self, act: Callable[[], object]) -> tuple[int, str]:
        return Fork(act).wait()

    def _read(self) -> None:
        found = self.command.read()
        assert digest(found) in self.states, f"{found!r:.500} is of neither end"

    def kill(self, number: int) -> Try:
        """Kill the command right before a change of the disk."""

        def fatal() -> None:
            self.moments.count, self.moments.fatal = 0, number
            self.command.call()

        made = Try(self.name, "kill", f"before change {number} of {self.changes}")
        with self.attempt():
            status, said = self.do(fatal)
            made.found = self._again() if status == -signal.SIGKILL else f"not killed: {said}"
        return made

    def pair(self) -> Try:
        """Call the command twice at once, with a TMPDIR for each."""

        def call(temporary: Path) -> None:
            os.environ["TMPDIR"] = str(temporary)
            temporary.mkdir(exist_ok=True)
            self.command.call()

        made = Try(self.name, "pair", "twice at once")
        with self.attempt():
            places = [self.folder.with_name(f"tmp-{number}") for number in range(2)]
            forks = [Fork(partial(call, place)) for place in places]
            for status, said in [fork.wait() for fork in forks]:
                if status:
                    made.found = f"one fails: {said}"
                    return made
            made.found = self._compare()
        return made

    def fill(self, size: int) -> Try:
        """Let no file grow beyond a size: what the disk would say later is said then."""

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            self.command.call()

        made = Try(self.name, "size", f"no file above {size} bytes")
        with self.attempt():
            status, said = self.do(limited)
            made.found = self._told(status, said) or self._again()
        return made

    def overflow(self, room: int) -> Try:
        """Call it on a file system of its own that has little room; then make some."""
        made = Try(self.name, "tmpfs", f"room for {room} bytes")
        files = (file for file in self.template.rglob("*") if file.is_file())
        used = sum(-(-file.stat().st_size // 4096) * 4096 for file in files)  # in pages
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        mount(self.folder, f"size={used + room}")
        try:
            shutil.copytree(self.template, self.folder, dirs_exist_ok=True)
            with inside(self.folder):
                told = self._told(*self.do(self.command.call))
                mount(self.folder, "remount,size=200m")
                made.found = told or self._again()
        finally:
            subprocess.run(["umount", "--lazy", self.folder], check=True)
        return made

    def _told(self, status: int, said: str) -> str:
        """What is wrong with how a command ended whose disk was full; "" if nothing is."""
        if "Traceback (most recent" in said:
            return f"a traceback: {said}"
        return "" if not status or any(full in said for full in FULL) else f"not told: {said}"

    def _again(self) -> str:
        """Read what a command left, call it again, and compare."""
        status, said = self.do(self._read)
        if status:
            return f"a part is read: {said}"
        status, said = self.do(self.command.call)
        return f"refused: {said}" if status else self._compare()

    def _compare(self) -> str:
        different = differences(self.whole, content(self.folder))
        return f"not the same: {different}" if different else "same"


def mount(folder: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def load() -> None:
    """Import what commands would import when they are called."""
    for room in ROOMS:
        face = importlib.import_module(f"codiemb_lib.{room}")
        for name in face.__all__:
            getattr(face, name)
    importlib.import_module("codiemb_lib.app.report")


def attack(name: str, folder: Path, seed: int, kills: int) -> Iterator[Try]:
    """All tries of a command, by a process that has run it once."""
    g, victim = random.Random(f"{seed} {name}"), Victim(name, folder, Moments())
    for number in sorted(g.sample(range(1, victim.changes + 1), min(kills, victim.changes))):
        yield victim.kill(number)
    if name in DOUBLED:
        yield victim.pair()
    yield victim.fill(g.choice([0, 10, 200, max(victim.sizes) - 1]))
    try:
        mount(victim.folder, "size=1m")
    except (OSError, subprocess.CalledProcessError):
        return  # nobody but root may
    subprocess.run(["umount", victim.folder], check=True)
    yield victim.overflow(g.choice([0, 8_192, 65_536]))


def main(folder: str, seed: str, kills: str, *names: str) -> None:
    load()
    torch.set_num_threads(1)  # a fork has no others
    sys.dont_write_bytecode = True
    os.fsync = lambda _: None  # a kill is no power cut: what has been written stays
    out = os.fdopen(os.dup(1), "w")  # commands print to the other
    os.dup2(2, 1)
    for name in names or COMMANDS:

        def report(name: str = name) -> None:
            for made in attack(
                name, Path(folder, re.sub(r"\W+", "-", name)), int(seed), int(kills)
            ):
                print(json.dumps(asdict(made)), file=out, flush=True)

        status, said = Fork(report).wait()
        assert not status, f"{name}: {said}"


if __name__ == "__main__":
    main(*sys.argv[1:])
