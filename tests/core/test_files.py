"""Files appear whole or not at all."""

import errno
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from codiemb_lib.core import files
from codiemb_lib.core.files import (
    UnwritableError,
    alone,
    atomic_path,
    check_writable,
    read_json,
    read_text,
    sha256_file,
    sha256_text,
    write_json,
    write_text,
)
from codiemb_lib.core.words import CodiembError


def test_a_failure_leaves_the_old_content_and_no_litter(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "model"
    for content in ("old", "new"):
        with atomic_path(folder) as temporary:
            (temporary / "deep").mkdir(parents=True)
            (temporary / "deep" / content).write_text(content)
    assert [p.name for p in (folder / "deep").iterdir()] == ["new"]
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_may_be_the_one_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with atomic_path(".") as temporary:
        temporary.mkdir()
        (temporary / "a.txt").touch()
    assert os.listdir(tmp_path / "here") == ["a.txt"]


HALF = """
import os, sys, time
from codiemb_lib.core.files import alone, atomic_path
half = [atomic_path(name) for name in ("a.txt", "a.txt.b", "a" * 250)]
for path in half:
    path.__enter__().write_text("half")
with alone("a.txt"):
    open("begun", "w").close()
    time.sleep(3600)
"""


@contextmanager
def half_way(folder, **environment):
    """A process that writes three files, and holds the lock of one, until it is killed."""
    environment = os.environ | environment
    process = subprocess.Popen([sys.executable, "-c", HALF], cwd=folder, env=environment)
    while not (folder / "begun").exists():
        assert process.poll() is None
        time.sleep(0.02)
    (folder / "begun").unlink()
    yield process
    process.kill()
    process.wait()


def test_what_kills_left_goes_when_something_is_written_beside_it(tmp_path):
    with half_way(tmp_path):
        write_text(tmp_path / "a.txt", "whole")  # takes nothing from one that lives
        left = {*tmp_path.glob(".*.partial")}
        assert len(left) == 3
    write_text(tmp_path / "another", "whole")
    assert not {*tmp_path.glob(".*.partial")}


def test_a_lock_lies_with_what_it_guards_and_names_its_holder(tmp_path, caplog):
    with half_way(tmp_path, TMPDIR=str(tmp_path)) as holder:
        threading.Timer(0.5, holder.kill).start()
        with alone(tmp_path / "a.txt"):
            assert holder.wait() == -9
    assert re.search(rf"a.txt: process {holder.pid} on .+, since 20.+ works on it", caplog.text)
    assert not [*tmp_path.glob(".*.lock")]


def test_a_lock_is_never_opened_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("content")
    (tmp_path / ".a.txt.lock").symlink_to(tmp_path / "precious")
    refused = pytest.raises(UnwritableError, match=r"\.a\.txt\.lock: expected a file to be locked")
    with refused, alone(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "precious").read_text() == "content"


def test_parents_are_made_and_json_comes_back(tmp_path):
    path = tmp_path / "a folder" / "b" / "c.json"
    write_json(path, {"ü": [1, 2.5, None]})
    assert read_json(path) == {"ü": [1, 2.5, None]}


def test_broken_json_names_file_and_line(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{\n"a": }')
    with pytest.raises(CodiembError, match=r"broken\.json:2: expected JSON"):
        read_json(path)


def test_a_byte_order_mark_is_no_content(tmp_path):
    path = tmp_path / "marked.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xbc"}')
    assert read_json(path) == {"a": "ü"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{\n"é": 1}'.encode("latin-1"), "2: expected UTF-8, found byte 0xe9. Save it as"),
        ("{}".encode("utf-16"), "1: expected UTF-8, found byte 0xff"),
        (b"[" * 100_000, "1: expected JSON, found: maximum recursion depth"),
        (b"1" * 5000, "1: expected JSON, found: Exceeds the limit"),
    ],
)
def test_what_is_no_text_or_no_json_names_file_and_line(tmp_path, content, message):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(CodiembError, match=rf"broken\.json:{message}"):
        read_json(path)
    with pytest.raises(CodiembError, match=r"none\.json: expected a file that can be read"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["bomb.gz", "bomb.bz2"])
def test_a_packed_file_has_a_bound(tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "_MOST", 1000)
    for size, message in ((1000, None), (1001, "expected 1,000 bytes at most, found more")):
        with files.PACKED[Path(name).suffix](tmp_path / name, "wb") as stream:
            stream.write(b"a" * size)
        if message is None:
            assert len(read_text(tmp_path / name)) == size
        else:
            with pytest.raises(CodiembError, match=message):
                read_text(tmp_path / name)


def test_an_unwritable_folder_is_refused(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("I am no folder")
    with pytest.raises(UnwritableError, match="expected a folder that can be written"):
        check_writable(blocked / "runs")


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path):
    folder = tmp_path / "runs"
    (folder / "kept").mkdir(parents=True)
    with pytest.raises(UnwritableError, match="name of a file, found a folder"):
        write_json(folder, {})
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "kept"]


def test_hashes():
    assert sha256_text("ab", "c") != sha256_text("a", "bc")
    assert sha256_file(__file__) == sha256_file(__file__)


KILLED = """
import os, sys
from pathlib import Path
from codiemb_lib.core import atomic_path

Path.replace = lambda *_: os._exit(9)
with atomic_path(sys.argv[1]) as new:
    new.mkdir()
    (new / "file").write_text("new")
"""


def test_a_folder_that_a_kill_took_away_between_two_renames_comes_back(tmp_path):
    folder, other = tmp_path / "a folder", tmp_path / "other"
    folder.mkdir()
    (folder / "file").write_text("old")
    command = [sys.executable, "-c", KILLED, str(folder)]
    assert subprocess.run(command, check=False).returncode == 9
    assert not folder.exists()
    write_text(other, "beside")  # leaves it where it waits
    with pytest.raises(KeyError), atomic_path(folder):
        raise KeyError
    assert (folder / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a folder", "other"]


def test_a_full_disk_is_said_with_the_path(tmp_path):
    with (
        pytest.raises(UnwritableError, match=r"file: expected room to write, found: No space left"),
        atomic_path(tmp_path / "file"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not [*tmp_path.iterdir()]
