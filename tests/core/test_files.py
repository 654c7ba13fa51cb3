"""Files appear whole or not at all."""

import os
import subprocess
import sys

import pytest

from codiemb_lib.core.errors import CodiembError
from codiemb_lib.core.files import (
    UnwritableError,
    atomic_path,
    check_writable,
    clear_scratch,
    read_json,
    sha256_file,
    sha256_text,
    write_json,
    write_text,
)


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


def test_what_a_kill_left_is_cleared_for_one_path_alone(tmp_path):
    code = (
        "import os, sys\n"
        "from codiemb_lib.core.files import atomic_path\n"
        "half = [atomic_path(sys.argv[1] + '/' + name) for name in ('a.txt', 'a.txt.b', 'b.txt')]\n"
        "for path in half:\n"
        "    path.__enter__().write_text('half')\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert len(os.listdir(tmp_path)) == 3
    clear_scratch(tmp_path / "a.txt")
    assert sorted(name[:9] for name in os.listdir(tmp_path))[0] == ".a.txt.b."
    assert len(os.listdir(tmp_path)) == 2


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
