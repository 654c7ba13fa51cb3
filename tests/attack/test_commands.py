"""Whatever befalls a command that writes, nothing half is left and the same call mends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attack.commands import COMMANDS, DOUBLED

ROOT, SEED, KILLS = Path(__file__).parents[2], 20261201, 2


@pytest.fixture(scope="module")
def tries(tmp_path_factory):
    """What became of every try, by a process of one thread, which may be forked."""
    folder = str(tmp_path_factory.mktemp("attack"))
    command = [sys.executable, "-m", "tests.attack.harness", folder, str(SEED), str(KILLS)]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def of(tries, command, trouble):
    """The tries of a command in one kind of trouble, and those of them that did not end well."""
    own = [t for t in tries if (t["command"], t["trouble"]) == (command, trouble)]
    return own, [t for t in own if t["found"] != "same"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_kill_leaves_whole_or_nothing_and_the_same_call_comes_to_the_same(tries, command):
    own, wrong = of(tries, command, "kill")
    assert own
    assert not wrong


@pytest.mark.parametrize("command", sorted(DOUBLED))
def test_two_at_once_come_to_what_one_comes_to(tries, command):
    own, wrong = of(tries, command, "pair")
    assert own
    assert not wrong


@pytest.mark.parametrize("command", COMMANDS)
def test_files_that_may_not_grow_are_told_in_a_line_and_the_same_call_mends_it(tries, command):
    own, wrong = of(tries, command, "size")
    assert own
    assert not wrong


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_told_in_a_line_and_the_same_call_mends_it(tries, command):
    own, wrong = of(tries, command, "tmpfs")
    if not own:
        pytest.skip("nobody but root may mount a file system")
    assert not wrong
